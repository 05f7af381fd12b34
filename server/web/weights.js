/** The panel of expert variants and LoRA adapters: their state and use, and a form to load others. */

import { errorText, request } from "./api.js";
import { byId, make, report, write } from "./dom.js";
import { count, plural, size } from "./format.js";

/**
 * @typedef {{unfinished: number, total: number}} Use
 * @typedef {{name: string, model: string, version: number, experts: number, experts_resident: number,
 *   experts_added: number, experts_removed: number, bytes: number, tokens: number, requests: Use}} Variant
 * @typedef {{name: string, state: string, tier: string, rank: number, bytes: number, tokens: number,
 *   requests: Use, token_routing: string[]}} Adapter
 * @typedef {"variant" | "adapter"} Kind
 * @typedef {object} Row
 * @property {Kind} kind
 * @property {string} name
 * @property {string} model name in requests
 * @property {string} about in one sentence
 * @property {string} state
 * @property {string} tier
 * @property {number} bytes
 * @property {Use} requests
 * @property {number} tokens
 */

const POLL_INTERVAL_MS = 2000;
const MAX_SHARE = 0.05; // of the time that may be spent waiting for the lists, which can be long
const MAX_ROWS = 20;
const RANKS = ["running", "loading"]; // states that are listed first
const NONE = "No variants or adapters are loaded.";
const HOW = "Start the server with --experts-dir or --adapters-dir to load them here.";

export class Weights {
  /**
   * @param {(routers: string[]) => void} onNames called when there are other models than before, or other methods of
   *   the model auto that choose adapters for each token
   */
  constructor(onNames) {
    this.onNames = onNames;
    this.box = byId("weights-box");
    this.body = byId("weights-body");
    this.note = byId("weights-note");
    this.result = byId("weights-result");
    this.loader = byId("weights-loader");
    this.kind = /** @type {HTMLSelectElement} */ (byId("weights-kind"));
    this.name = /** @type {HTMLInputElement} */ (byId("weights-name"));
    this.path = /** @type {HTMLInputElement} */ (byId("weights-path"));
    this.nextAt = -Infinity;
    this.isPolling = false;
    /** @type {Row[]} */
    this.rows = [];
    /** @type {string[]} */
    this.routers = [];
    byId("weights-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.load();
    });
    this.name.addEventListener("input", () => this.writeButton());
    this.kind.addEventListener("change", () => this.writeButton());
  }

  /** @param {number} now polls the server if the interval has passed */
  show(now) {
    if (!this.isPolling && now >= this.nextAt) void this.poll();
  }

  /** Forget all, because the server may be another one. */
  clear() {
    this.rows = [];
    this.nextAt = -Infinity;
    this.body.replaceChildren();
    this.box.hidden = true;
    write(this.note, "");
    report(this.result, "");
  }

  async poll() {
    this.isPolling = true;
    const startedAt = performance.now();
    try {
      const [variants, adapters] = await Promise.all(
        ["/v1/experts/variants", "/v1/adapters"].map(async (path) => (await request(path)).json()),
      );
      this.offer(variants.folder, adapters.folder);
      const routers = /** @type {Adapter[]} */ (adapters.data).flatMap((adapter) => adapter.token_routing);
      this.write([...variants.data.map(ofVariant), ...adapters.data.map(ofAdapter)], [...new Set(routers)]);
    } catch (error) {
      write(this.note, errorText(error));
    }
    const now = performance.now();
    this.nextAt = now + Math.max(POLL_INTERVAL_MS, (now - startedAt) / MAX_SHARE);
    this.isPolling = false;
  }

  /**
   * Offer to load what the server has a folder for.
   *
   * @param {string | null} variants
   * @param {string | null} adapters
   */
  offer(variants, adapters) {
    /** @type {[Kind, string | null][]} */
    const folders = [["variant", variants], ["adapter", adapters]];
    const options = folders.filter(([, folder]) => folder !== null);
    this.loader.hidden = !options.length;
    if (options.map(([kind]) => kind).join() === [...this.kind.options].map((each) => each.value).join()) return;
    this.kind.replaceChildren(...options.map(([kind, folder]) => new Option(`${kind} below ${folder}`, kind)));
    this.writeButton();
  }

  /**
   * @param {Row[]} rows
   * @param {string[]} routers
   */
  write(rows, routers) {
    const before = this.models();
    this.rows = rows;
    this.routers = routers;
    const sorted = [...rows].sort((one, other) => rank(one) - rank(other));
    const shown = sorted.slice(0, MAX_ROWS);
    while (this.body.children.length > shown.length) this.body.lastElementChild?.remove();
    while (this.body.children.length < shown.length) this.body.append(this.tableRow());
    shown.forEach((row, place) => writeRow(/** @type {HTMLElement} */ (this.body.children[place]), row));
    this.box.hidden = !rows.length;
    const more = rows.length - shown.length;
    const empty = this.loader.hidden ? `${NONE} ${HOW}` : NONE;
    write(this.note, rows.length ? (more ? `And ${count(more)} more.` : "") : empty);
    this.writeButton();
    if (this.models() !== before) this.onNames(routers);
  }

  /** Return the models and routers in one text, to see whether they change. */
  models() {
    return [...this.rows.map((row) => row.model), ...this.routers].join("\n");
  }

  tableRow() {
    const element = make("tr");
    for (let column = 0; column < 7; column += 1) {
      const cell = column ? make("td") : make("th");
      if (!column) cell.setAttribute("scope", "row");
      if (column === 1) cell.append(make("span", "state-dot"));
      cell.append(column === 6 ? this.unloadButton(element) : make("span"));
      if (!column) cell.append(" ", make("span", "kind"));
      element.append(cell);
    }
    return element;
  }

  /** @param {HTMLElement} element row of the button */
  unloadButton(element) {
    const button = make("button", "", "Unload");
    button.type = "button";
    button.addEventListener("click", () => {
      const row = this.rows.find((each) => each.model === element.dataset.model);
      if (row) void this.unload(row);
    });
    return button;
  }

  /** @param {Row} row */
  unload({ kind, name }) {
    const isVariant = kind === "variant";
    return this.change(`The ${kind} ${name} was unloaded. Running requests finish with it.`, () =>
      isVariant
        ? request(`/v1/experts/variants/${encodeURIComponent(name)}`, { method: "DELETE" })
        : request("/v1/unload_lora_adapter", { body: { lora_name: name } }),
    );
  }

  /** Load what the form says, in the place of what has the name already. */
  async load() {
    const kind = /** @type {Kind} */ (this.kind.value);
    const [name, path] = [this.name.value.trim(), this.path.value.trim()];
    const isReplaced = this.find(kind, name) !== undefined;
    const isDone = await this.change(`The ${kind} ${name} was ${isReplaced ? "replaced" : "loaded"}.`, () =>
      kind === "variant"
        ? request("/v1/experts/load", { body: { name, path } })
        : request("/v1/load_lora_adapter", { body: { lora_name: name, lora_path: path, load_inplace: isReplaced } }),
    );
    if (!isDone) return;
    this.name.value = this.path.value = "";
    this.writeButton();
  }

  /**
   * Change what is loaded, and show the result.
   *
   * @param {string} done text if it succeeded
   * @param {() => Promise<unknown>} send
   * @returns {Promise<boolean>} true if it succeeded
   */
  async change(done, send) {
    try {
      await send();
    } catch (error) {
      report(this.result, errorText(error), true);
      return false;
    }
    report(this.result, done);
    await this.poll();
    return true;
  }

  /**
   * @param {Kind} kind
   * @param {string} name
   */
  find(kind, name) {
    return this.rows.find((row) => row.kind === kind && row.name === name);
  }

  writeButton() {
    const isTaken = this.find(/** @type {Kind} */ (this.kind.value), this.name.value.trim()) !== undefined;
    write(byId("weights-load"), isTaken ? "Replace" : "Load");
  }
}

/** @param {Row} row */
function rank({ state }) {
  const place = RANKS.indexOf(state);
  return place < 0 ? RANKS.length : place;
}

/**
 * @param {Variant} variant
 * @returns {Row}
 */
function ofVariant({ name, model, version, bytes, tokens, requests, ...experts }) {
  const words = [`version ${version}`, `${plural(experts.experts, "expert")} of its own`];
  if (experts.experts_added) words.push(`${count(experts.experts_added)} added`);
  if (experts.experts_removed) words.push(`${count(experts.experts_removed)} removed`);
  const tier = experts.experts ? `${count(experts.experts_resident)} / ${count(experts.experts)}` : "–";
  const state = requests.unfinished ? "running" : "loaded";
  return { kind: "variant", name, model, about: words.join(", "), state, tier, bytes, requests, tokens };
}

/**
 * @param {Adapter} adapter
 * @returns {Row}
 */
function ofAdapter({ name, state, tier, rank, bytes, requests, tokens }) {
  return { kind: "adapter", name, model: name, about: `rank ${rank}`, state, tier, bytes, requests, tokens };
}

/**
 * @param {HTMLElement} element
 * @param {Row} row
 */
function writeRow(element, row) {
  element.dataset.model = row.model;
  const cells = /** @type {HTMLElement[]} */ ([...element.children]);
  cells[0].title = row.about;
  cells[1].firstElementChild?.setAttribute("data-state", row.state);
  write(/** @type {HTMLElement} */ (cells[0].lastElementChild), row.kind);
  write(/** @type {HTMLElement} */ (cells[0].firstElementChild), row.model);
  const texts = [
    row.state,
    row.tier,
    size(row.bytes),
    count(row.requests.total),
    count(row.tokens),
  ];
  texts.forEach((text, place) => write(/** @type {HTMLElement} */ (cells[place + 1].lastElementChild), text));
  cells[6].firstElementChild?.setAttribute("aria-label", `Unload ${row.kind} ${row.model}`);
}

/** The panel of expert variants and LoRA adapters: polls them, loads and unloads. */

import { errorText, request } from "./api.js";
import { byId, report, write } from "./dom.js";
import { count, plural } from "./format.js";
import { confirmUnload } from "./unload_dialog.js";
import { WeightsLoader } from "./weights_loader.js";
import { WeightsTable } from "./weights_table.js";

/**
 * @typedef {{unfinished: number, total: number}} Use
 * @typedef {{name: string, model: string, version: number, experts: number, experts_resident: number,
 *   experts_added: number, experts_removed: number, bytes: number, tokens: number, requests: Use}} Variant
 * @typedef {{name: string, state: string, tier: string, rank: number, bytes: number, tokens: number,
 *   requests: Use, token_routing: string[]}} Adapter
 * @typedef {import("./weights_loader.js").Kind} Kind
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
const NONE = "No variants or adapters are loaded.";
const HOW = "Start the server with --experts-dir or --adapters-dir to load them here.";

export class Weights {
  /**
   * @param {(routers: string[]) => void} onNames called when there are other models than before, or other methods of
   *   the model auto that choose adapters for each token
   */
  constructor(onNames) {
    this.onNames = onNames;
    this.result = byId("weights-result");
    this.loader = new WeightsLoader((kind, name) => this.find(kind, name) !== undefined, (...asked) => this.load(...asked));
    this.table = new WeightsTable((row) => void this.unload(row), () => (this.loader.isOffered ? NONE : `${NONE} ${HOW}`));
    this.nextAt = -Infinity;
    this.isPolling = false;
    this.numPolls = 0;
    /** @type {Row[]} */
    this.rows = [];
    /** @type {string[]} */
    this.routers = [];
  }

  /** @param {number} now polls the server if the interval has passed */
  show(now) {
    if (!this.isPolling && now >= this.nextAt) void this.poll();
  }

  /** Forget all, because the server may be another one. */
  clear() {
    this.rows = [];
    this.nextAt = -Infinity;
    this.numPolls += 1; // what is on its way is of the other one
    this.isPolling = false;
    this.table.clear();
    report(this.result, "");
  }

  async poll() {
    this.isPolling = true;
    const number = ++this.numPolls;
    const startedAt = performance.now();
    try {
      const [variants, adapters] = await Promise.all(
        ["/v1/experts/variants", "/v1/adapters"].map(async (path) => (await request(path)).json()),
      );
      if (number !== this.numPolls) return; // a later poll, after a change, tells more
      this.loader.offer(variants.folder, adapters.folder);
      const routers = /** @type {Adapter[]} */ (adapters.data).flatMap((adapter) => adapter.token_routing);
      this.write([...variants.data.map(ofVariant), ...adapters.data.map(ofAdapter)], [...new Set(routers)]);
    } catch (error) {
      write(byId("weights-note"), errorText(error));
    }
    const now = performance.now();
    this.nextAt = now + Math.max(POLL_INTERVAL_MS, (now - startedAt) / MAX_SHARE);
    this.isPolling = false;
  }

  /**
   * @param {Row[]} rows
   * @param {string[]} routers
   */
  write(rows, routers) {
    const before = this.models();
    this.rows = rows;
    this.routers = routers;
    this.table.show(rows);
    this.loader.writeButton();
    if (this.models() !== before) this.onNames(routers);
  }

  /** Return the models and routers in one text, to see whether they change. */
  models() {
    return [...this.rows.map((row) => row.model), ...this.routers].join("\n");
  }

  /** @param {Row} row unloaded if the user confirms it */
  async unload({ kind, name }) {
    if (!(await confirmUnload(kind, name))) return;
    await this.change(`The ${kind} ${name} was unloaded. Running requests finish with it.`, () =>
      kind === "variant"
        ? request(`/v1/experts/variants/${encodeURIComponent(name)}`, { method: "DELETE" })
        : request("/v1/unload_lora_adapter", { body: { lora_name: name } }),
    );
  }

  /**
   * Load a folder, in the place of what has the name already.
   *
   * @param {Kind} kind
   * @param {string} name
   * @param {string} path
   * @returns {Promise<boolean>} true if it succeeded
   */
  load(kind, name, path) {
    const isReplaced = this.find(kind, name) !== undefined;
    return this.change(`The ${kind} ${name} was ${isReplaced ? "replaced" : "loaded"}.`, () =>
      kind === "variant"
        ? request("/v1/experts/load", { body: { name, path } })
        : request("/v1/load_lora_adapter", { body: { lora_name: name, lora_path: path, load_inplace: isReplaced } }),
    );
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

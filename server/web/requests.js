/** The table of running, held and waiting requests. */

import { errorText, request } from "./api.js";
import { byId, make, write } from "./dom.js";
import { count, rate, seconds } from "./format.js";
import { weightsText } from "./model_colours.js";

const POLL_INTERVAL_MS = 500;
const MAX_ROWS = 12;
const NONE = "No running or waiting requests.";

/** @type {Record<string, string>} kinds of requests by the prefix of the id */
const KINDS = { chatcmpl: "chat", cmpl: "completion", resp: "response", msg: "message", embd: "embedding" };

/**
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {object} Status one choice of a request
 * @property {string} id
 * @property {number} choice
 * @property {string} model
 * @property {Record<string, number>} adapters factors by name
 * @property {"waiting" | "prefill" | "decode" | "held"} state
 * @property {number} prompt_tokens
 * @property {number} cached_tokens
 * @property {number} completion_tokens
 * @property {number} max_tokens
 * @property {number} age_seconds
 * @property {number} queue_seconds
 * @property {{expert_stall_seconds: number, routing?: {reason: string,
 *   weights?: import("./chat_stream.js").Weights}}} greenroom
 */

export class Requests {
  constructor() {
    this.body = byId("requests-body");
    this.box = byId("requests-box");
    this.note = byId("requests-note");
    this.polledAt = -Infinity;
    this.isPolling = false;
    /** @type {Map<string, Status>} */
    this.before = new Map();
  }

  /**
   * Poll the server if the interval has passed and any request is running or waiting.
   *
   * @param {Totals} totals
   * @param {number} now
   */
  show(totals, now) {
    const isIdle = !totals.num_requests_running && !totals.num_requests_waiting && !this.before.size;
    if (isIdle) write(this.note, NONE);
    if (isIdle || this.isPolling || now - this.polledAt < POLL_INTERVAL_MS) return;
    this.polledAt = now;
    void this.poll();
  }

  async poll() {
    this.isPolling = true;
    try {
      const { data } = await (await request("/v1/requests")).json();
      this.write(data);
    } catch (error) {
      write(this.note, errorText(error));
    }
    this.isPolling = false;
  }

  /** Remove all rows, because the server may be another one. */
  clear() {
    this.write([]);
    write(this.note, "");
    this.polledAt = -Infinity;
  }

  /** @param {Status[]} data in the order of scheduling */
  write(data) {
    const shown = data.slice(0, MAX_ROWS);
    while (this.body.children.length > 2 * shown.length) this.body.lastElementChild?.remove();
    while (this.body.children.length < 2 * shown.length) this.body.append(row(), modelRow());
    shown.forEach((status, place) => {
      const [first, second] = [this.body.children[2 * place], this.body.children[2 * place + 1]];
      const cells = first.children;
      cells[0].setAttribute("title", status.id);
      write(/** @type {HTMLElement} */ (second.firstElementChild), modelText(status));
      cells[1].firstElementChild?.setAttribute("data-state", status.state);
      texts(status, this.before.get(key(status))).forEach((text, column) =>
        write(/** @type {HTMLElement} */ (cells[column].lastElementChild), text),
      );
    });
    this.before = new Map(data.map((status) => [key(status), status]));
    this.box.hidden = !data.length;
    const more = data.length - shown.length;
    write(this.note, data.length ? (more ? `And ${count(more)} more.` : "") : NONE);
  }
}

function row() {
  const element = make("tr");
  for (let column = 0; column < 7; column += 1) {
    const cell = column ? make("td") : make("th");
    if (!column) cell.setAttribute("scope", "row");
    if (column === 1) cell.append(make("span", "state-dot"));
    cell.append(make("span"));
    element.append(cell);
  }
  return element;
}

/** Return the row below that of a request, for its model and why a router chose that. */
function modelRow() {
  const element = make("tr", "model-row");
  const cell = make("td");
  cell.setAttribute("colspan", "7");
  element.append(cell);
  return element;
}

/** @param {Status} status */
function modelText({ model, adapters, greenroom: { routing } }) {
  const chosen = weightsText(routing?.weights ?? {});
  const others = Object.entries(adapters).filter(([name, factor]) => name !== model || factor !== 1);
  const words = [chosen ? `${model} (${chosen})` : model, ...others.map(([name, factor]) => `${name} × ${factor}`)];
  return routing ? `${words.join(" + ")} · routing: ${routing.reason}` : words.join(" + ");
}

/** @param {Status} status */
function key(status) {
  return `${status.id}-${status.choice}`;
}

/**
 * @param {Status} status
 * @param {Status} [before] the same request at the last poll
 * @returns {string[]} text of each column
 */
function texts(status, before) {
  const { state, prompt_tokens: prompt, completion_tokens: generated } = status;
  const prefix = status.id.split(/[-_]/, 1)[0];
  const name = `${KINDS[prefix] ?? prefix} ${status.id.slice(prefix.length + 1, prefix.length + 6)}`;
  const age = before ? status.age_seconds - before.age_seconds : 0;
  const speed = before && age > 0 && generated ? rate((generated - before.completion_tokens) / age) : "–";
  const read = Math.min(prompt, status.cached_tokens);
  return [
    status.choice ? `${name} #${status.choice + 1}` : name,
    state === "waiting" && !generated ? `waiting ${seconds(status.queue_seconds)}` : state,
    state === "prefill" && read < prompt ? `${count(read)} / ${count(prompt)}` : count(prompt),
    `${count(generated)} / ${count(status.max_tokens)}`,
    speed,
    seconds(status.age_seconds),
    seconds(status.greenroom.expert_stall_seconds),
  ];
}

/** The requests that run, are held or wait: what each is at. */

import { request, sentence } from "./api.js";
import { byId, make, write } from "./dom.js";
import { count, rate, seconds } from "./format.js";

const LOOK_MS = 500; // between two looks
const MAX_ROWS = 12;
const NONE = "None runs or waits.";

/** @type {Record<string, string>} what is asked for, by how the id begins */
const KINDS = { chatcmpl: "chat", cmpl: "completion", resp: "response", msg: "message", embd: "embedding" };

/**
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {object} Status of a choice of a request
 * @property {string} id
 * @property {number} choice
 * @property {"waiting" | "prefill" | "decode" | "held"} state
 * @property {number} prompt_tokens
 * @property {number} cached_tokens
 * @property {number} completion_tokens
 * @property {number} max_tokens
 * @property {number} age_seconds
 * @property {number} queue_seconds
 * @property {{expert_stall_seconds: number}} greenroom
 */

export class Requests {
  constructor() {
    this.body = byId("requests-body");
    this.box = byId("requests-box");
    this.note = byId("requests-note");
    this.lookedAt = -Infinity;
    this.isLooking = false;
    /** @type {Map<string, Status>} */
    this.before = new Map();
  }

  /**
   * Look again if it is time, and there is something to see.
   *
   * @param {Totals} totals
   * @param {number} now
   */
  show(totals, now) {
    const isIdle = !totals.num_requests_running && !totals.num_requests_waiting && !this.before.size;
    if (isIdle) write(this.note, NONE);
    if (isIdle || this.isLooking || now - this.lookedAt < LOOK_MS) return;
    this.lookedAt = now;
    void this.look();
  }

  async look() {
    this.isLooking = true;
    try {
      const { data } = await (await request("/v1/requests")).json();
      this.write(data);
    } catch (error) {
      write(this.note, sentence(error));
    }
    this.isLooking = false;
  }

  /** Forget them: the server is another than before. */
  clear() {
    this.write([]);
    write(this.note, "");
    this.lookedAt = -Infinity;
  }

  /** @param {Status[]} data first to go first */
  write(data) {
    const shown = data.slice(0, MAX_ROWS);
    while (this.body.children.length > shown.length) this.body.lastElementChild?.remove();
    while (this.body.children.length < shown.length) this.body.append(row());
    shown.forEach((status, place) => {
      const cells = /** @type {HTMLElement} */ (this.body.children[place]).children;
      cells[0].setAttribute("title", status.id);
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
    if (column === 1) cell.append(make("span", "state-lamp"));
    cell.append(make("span"));
    element.append(cell);
  }
  return element;
}

/** @param {Status} status */
function key(status) {
  return `${status.id}-${status.choice}`;
}

/**
 * @param {Status} status
 * @param {Status} [before] the same request a while ago
 * @returns {string[]} by column
 */
function texts(status, before) {
  const { state, prompt_tokens: prompt, completion_tokens: written } = status;
  const prefix = status.id.split(/[-_]/, 1)[0];
  const name = `${KINDS[prefix] ?? prefix} ${status.id.slice(prefix.length + 1, prefix.length + 6)}`;
  const age = before ? status.age_seconds - before.age_seconds : 0;
  const speed = before && age > 0 && written ? rate((written - before.completion_tokens) / age) : "–";
  const read = Math.min(prompt, status.cached_tokens);
  return [
    status.choice ? `${name} #${status.choice + 1}` : name,
    state === "waiting" && !written ? `waiting ${seconds(status.queue_seconds)}` : state,
    state === "prefill" && read < prompt ? `${count(read)} / ${count(prompt)}` : count(prompt),
    `${count(written)} / ${count(status.max_tokens)}`,
    speed,
    seconds(status.age_seconds),
    seconds(status.greenroom.expert_stall_seconds),
  ];
}

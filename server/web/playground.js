/** The playground: a conversation with the model that is served. */

import { request, sentence } from "./api.js";
import { answer } from "./chat_stream.js";
import { byId, make, report } from "./dom.js";
import { plural, rate, size } from "./format.js";

/**
 * @typedef {import("./chat_stream.js").Message} Message
 * @typedef {import("./chat_stream.js").Usage} Usage
 * @typedef {import("./transcript.js").Transcript} Transcript
 */

/** @type {[string, string][]} ids of number fields, and what they are called in a request */
const PARAMETERS = [
  ["temperature", "temperature"],
  ["top-p", "top_p"],
  ["max-tokens", "max_tokens"],
  ["seed", "seed"],
];

export class Playground {
  /** @param {Transcript} transcript */
  constructor(transcript) {
    this.transcript = transcript;
    this.form = /** @type {HTMLFormElement} */ (byId("ask"));
    this.question = /** @type {HTMLTextAreaElement} */ (byId("question"));
    this.model = /** @type {HTMLSelectElement} */ (byId("chat-model"));
    this.status = byId("chat-status");
    /** @type {Message[]} */
    this.messages = [];
    /** @type {AbortController | null} */
    this.running = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.send();
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("clear").addEventListener("click", () => this.clear());
  }

  /** Ask which models there are. */
  async loadModels() {
    try {
      const { data } = await (await request("/v1/models")).json();
      const before = this.model.value;
      const names = data.map((/** @type {{id: string}} */ model) => model.id);
      this.model.replaceChildren(...names.map((/** @type {string} */ name) => new Option(name, name)));
      if (names.includes(before)) this.model.value = before;
      if (!this.running) report(this.status, "");
    } catch (error) {
      report(this.status, sentence(error), true);
    }
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    this.transcript.clear();
    report(this.status, "");
  }

  /** Send what was typed, and show the answer as it is written. */
  async send() {
    const content = this.question.value.trim();
    if (!content || this.running) return;
    const wishes = this.wishes();
    if (!wishes) return;
    const running = new AbortController();
    const messages = [...this.messages, /** @type {Message} */ ({ role: "user", content })];
    this.run(running);
    this.transcript.ask(content);
    this.question.value = "";
    report(this.status, "Waiting for the first token.");
    let said = "";
    let cost = "";
    let problem = "";
    const clock = new Clock();
    try {
      for await (const told of answer({ ...wishes, messages }, running.signal)) {
        if (told.piece) {
          if (!clock.firstAt) report(this.status, "Answering.");
          clock.tick();
          this.transcript.add(told.piece);
          if (!told.piece.isReasoning) said += told.piece.text;
        }
        if (told.usage) cost = clock.sum(told.usage);
      }
    } catch (error) {
      if (!running.signal.aborted) problem = sentence(error);
    }
    if (this.running !== running) return; // the conversation was cleared meanwhile
    this.run(null);
    if (said) this.messages = [...messages, { role: "assistant", content: said }];
    this.transcript.close(cost || (problem ? "failed" : "stopped"));
    if (problem && !said) this.question.value ||= content;
    report(this.status, problem || (cost ? "The answer is complete." : "Stopped."), problem !== "");
  }

  /** @param {AbortController | null} running */
  run(running) {
    this.running = running;
    byId("send").hidden = running !== null;
    byId("stop").hidden = running === null;
  }

  /**
   * The model and parameters that were chosen; fields left empty are the model's to decide.
   *
   * @returns {Record<string, unknown> | null} null if one of them can't be, which the browser says
   */
  wishes() {
    /** @type {Record<string, unknown>} */
    const wishes = this.model.value ? { model: this.model.value } : {};
    for (const [id, name] of PARAMETERS) {
      const field = /** @type {HTMLInputElement} */ (byId(id));
      if (!field.reportValidity()) return null;
      if (field.value !== "") wishes[name] = field.valueAsNumber;
    }
    return wishes;
  }

  /** @param {string[]} layers that tokens may be coloured by */
  offerLayers(layers) {
    const select = /** @type {HTMLSelectElement} */ (byId("colour-by"));
    const before = select.value;
    const options = layers.map((name, row) => new Option(`first expert of layer ${name}`, String(row)));
    select.replaceChildren(new Option("whole path", "path"), ...options);
    select.value = [...select.options].some((option) => option.value === before) ? before : "path";
    select.onchange = () => this.transcript.colourBy(select.value === "path" ? null : Number(select.value));
  }
}

/** How fast an answer is written. */
class Clock {
  firstAt = 0;
  lastAt = 0;

  tick() {
    this.lastAt = performance.now();
    this.firstAt ||= this.lastAt;
  }

  /**
   * @param {Usage} usage
   * @returns {string}
   */
  sum({ completion_tokens: tokens, greenroom }) {
    const words = [plural(tokens, "token")];
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (seconds > 0) words.push(`${rate((tokens - 1) / seconds)} tokens/s`);
    words.push(`${plural(greenroom.expert_misses, "expert")} read (${size(greenroom.expert_bytes_read)})`);
    words.push(`${greenroom.expert_stall_seconds.toFixed(2)} s stalled`);
    return words.join(" · ");
  }
}

/**
 * The path of a token in words, a list item for each layer.
 *
 * @param {import("./chat_stream.js").Route} route
 * @param {number[]} layers
 */
export function pathItems(route, layers) {
  return route.map((experts, row) => make("li", "", `layer ${layers[row] ?? row}: ${experts.join(", ")}`));
}

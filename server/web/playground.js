/** The playground: conversations with the model that is served. */

import { request, sentence } from "./api.js";
import { answer } from "./chat_stream.js";
import { byId, report } from "./dom.js";
import { EXAMPLES, offerExamples } from "./examples.js";
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
const EXAMPLE_TOKENS = 64; // of each answer, when all examples are asked
const MAX_SPOKEN = 4000; // letters of an answer for screen readers

export class Playground {
  /** @param {Transcript} transcript */
  constructor(transcript) {
    this.transcript = transcript;
    this.form = /** @type {HTMLFormElement} */ (byId("ask"));
    this.question = /** @type {HTMLTextAreaElement} */ (byId("question"));
    this.domain = /** @type {HTMLInputElement} */ (byId("domain"));
    this.examples = /** @type {HTMLDetailsElement} */ (byId("examples"));
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
    byId("new-chat").addEventListener("click", () => this.beginChat());
    byId("ask-all").addEventListener("click", () => void this.askAll());
    offerExamples(({ domain, question }) => {
      this.question.value = question;
      this.domain.value = domain;
      this.question.focus();
    });
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
    this.run(null);
    this.messages = [];
    this.transcript.clear();
    this.domain.value = "";
    this.examples.open = true;
    report(this.status, "");
  }

  /** Forget what was said, but keep it on the page. */
  beginChat() {
    this.messages = [];
    this.transcript.beginChat();
  }

  /** Send what was typed. */
  async send() {
    const content = this.question.value.trim();
    if (!content || this.running) return;
    const wishes = this.wishes();
    if (!wishes) return;
    this.question.value = "";
    await this.ask(content, this.domain.value.trim(), wishes);
  }

  /** Ask every example in a chat of its own, so that each expert can tell which domains it serves. */
  async askAll() {
    const wishes = this.wishes();
    if (!wishes || this.running) return;
    wishes.max_tokens = Math.min(EXAMPLE_TOKENS, Number(wishes.max_tokens ?? EXAMPLE_TOKENS));
    for (const { domain, question } of EXAMPLES) {
      this.beginChat();
      if (!(await this.ask(question, domain, wishes))) return;
    }
    this.beginChat();
    report(this.status, "All examples are answered. Choose an expert on the stage to see which domains it served.");
  }

  /**
   * Show the answer to a question as it is written.
   *
   * @param {string} content
   * @param {string} domain of the question, empty for none
   * @param {Record<string, unknown>} wishes
   * @returns {Promise<boolean>} whether it came to its end
   */
  async ask(content, domain, wishes) {
    const running = new AbortController();
    const messages = [...this.messages, /** @type {Message} */ ({ role: "user", content })];
    this.run(running);
    this.transcript.ask(content, domain);
    this.examples.open = false;
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
    if (this.running !== running) return false; // the conversation was cleared meanwhile
    this.run(null);
    if (said) this.messages = [...messages, { role: "assistant", content: said }];
    this.transcript.close(cost || (problem ? "failed" : "stopped"));
    if (problem && !said) this.question.value ||= content;
    byId("answer-live").textContent = said.slice(0, MAX_SPOKEN);
    report(this.status, problem || (cost ? "The answer is complete." : "Stopped."), problem !== "");
    return cost !== "";
  }

  /** @param {AbortController | null} running */
  run(running) {
    const [hidden, shown] = running ? [byId("send"), byId("stop")] : [byId("stop"), byId("send")];
    const hadFocus = [hidden, byId("ask-all")].includes(/** @type {HTMLElement} */ (document.activeElement));
    this.running = running;
    hidden.hidden = true;
    shown.hidden = false;
    if (hadFocus) shown.focus();
    for (const id of ["new-chat", "ask-all"]) /** @type {HTMLButtonElement} */ (byId(id)).disabled = running !== null;
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

/** The playground: chats with the served model. */

import { ServerError, errorText } from "./api.js";
import { answer } from "./chat_stream.js";
import { ChatOptions, optionGroup } from "./chat_options.js";
import { byId, report } from "./dom.js";
import { EXAMPLES, addExampleButtons } from "./examples.js";
import { count, plural, rate, size } from "./format.js";
import { classify, labelList } from "./labels.js";
import { weightsText } from "./model_colours.js";

/**
 * @typedef {import("./chat_stream.js").Message} Message
 * @typedef {import("./chat_stream.js").Usage} Usage
 * @typedef {import("./transcript.js").Transcript} Transcript
 */

const EXAMPLE_TOKENS = 64; // per answer when all examples are run
const RETRY_MS = 2000; // until the models are listed again
const TEMPORARY = new Set([0, 503]); // statuses of a server that can't be reached, or is loading
const MAX_ANNOUNCED = 4000; // characters of an answer announced to screen readers

export class Playground {
  /** @param {Transcript} transcript */
  constructor(transcript) {
    this.transcript = transcript;
    this.form = /** @type {HTMLFormElement} */ (byId("chat-form"));
    this.message = /** @type {HTMLTextAreaElement} */ (byId("message"));
    this.domain = /** @type {HTMLInputElement} */ (byId("domain"));
    this.examples = /** @type {HTMLDetailsElement} */ (byId("examples"));
    this.options = new ChatOptions();
    this.status = byId("chat-status");
    /** @type {Message[]} */
    this.messages = [];
    /** @type {AbortController | null} */
    this.running = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.retry = undefined; // of listing the models
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.send();
    });
    this.message.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("clear").addEventListener("click", () => this.clear());
    byId("new-chat").addEventListener("click", () => this.startChat());
    byId("run-examples").addEventListener("click", () => void this.runExamples());
    addExampleButtons(({ domain, question }) => {
      this.message.value = question;
      this.domain.value = domain;
      this.message.focus();
    });
  }

  /**
   * List the models of the server.
   *
   * @param {string[]} [routers] methods of the model auto that can choose adapters for each token; none: those known
   */
  async loadModels(routers) {
    clearTimeout(this.retry);
    try {
      await this.options.loadModels(routers);
      if (!this.running) report(this.status, "");
    } catch (error) {
      report(this.status, errorText(error), true);
      const isTemporary = error instanceof ServerError && TEMPORARY.has(error.status);
      if (isTemporary) this.retry = setTimeout(() => void this.loadModels(routers), RETRY_MS);
    }
  }

  clear() {
    this.running?.abort();
    this.setRunning(null);
    this.messages = [];
    this.transcript.clear();
    this.domain.value = "";
    this.examples.open = true;
    report(this.status, "");
  }

  /** Start a new chat without earlier messages, which stay on the page. */
  startChat() {
    this.messages = [];
    this.transcript.startChat();
  }

  /** Send the message in the form. */
  async send() {
    const content = this.message.value.trim();
    if (!content || this.running) return;
    const parameters = this.options.parameters();
    if (!parameters) return;
    this.message.value = "";
    await this.ask(content, this.domain.value.trim(), parameters);
  }

  /** Send each example in a new chat, to show which experts serve which domains. */
  async runExamples() {
    const parameters = this.options.parameters();
    if (!parameters || this.running) return;
    parameters.max_tokens = Math.min(EXAMPLE_TOKENS, Number(parameters.max_tokens ?? EXAMPLE_TOKENS));
    for (const { domain, question } of EXAMPLES) {
      this.startChat();
      if (!(await this.ask(question, domain, parameters))) return;
    }
    this.startChat();
    const limit = plural(Number(parameters.max_tokens), "token");
    const next = "Select an expert in the heatmap to see the domains routed to it.";
    if (this.options.isForLabels) report(this.status, "All examples are classified.");
    else report(this.status, `All examples are answered, in at most ${limit} each. ${next}`);
  }

  /**
   * Send a message and show the answer as it is generated.
   *
   * @param {string} content
   * @param {string} domain of the message; empty for none
   * @param {Record<string, unknown>} parameters
   * @returns {Promise<boolean>} true if the answer has ended without a problem
   */
  async ask(content, domain, parameters) {
    if (this.options.isForLabels) return this.classify(content, domain);
    const running = new AbortController();
    const { firstMessages } = this.options;
    const messages = [...this.messages, /** @type {Message} */ ({ role: "user", content })];
    this.setRunning(running);
    this.transcript.addMessage(content, domain);
    this.examples.open = false;
    report(this.status, "Waiting for the first token.");
    let text = "";
    let cost = "";
    let routed = "";
    let problem = "";
    let finishReason = "";
    let numTokens = 0;
    const clock = new AnswerClock();
    try {
      for await (const event of answer({ ...parameters, messages: [...firstMessages, ...messages] }, running.signal)) {
        if (event.delta) {
          if (!clock.firstAt) report(this.status, "Generating.");
          clock.tick();
          this.transcript.add(event.delta);
          if (!event.delta.isReasoning) text += event.delta.text;
        }
        if (event.finishReason) finishReason = event.finishReason;
        if (event.weights) routed = weightsText(event.weights);
        if (event.choice) this.transcript.addReason(event.choice);
        if (event.usage) {
          numTokens = event.usage.completion_tokens;
          cost = [...(routed ? [routed] : []), clock.summary(event.usage)].join(" · ");
        }
      }
    } catch (error) {
      if (!running.signal.aborted) problem = errorText(error);
    }
    if (this.running !== running) return false; // the conversation was cleared meanwhile
    this.setRunning(null);
    if (text) this.messages = [...messages, { role: "assistant", content: text }];
    this.transcript.endAnswer(cost || (problem ? "failed" : "stopped"));
    if (problem && !text) this.message.value ||= content;
    byId("answer-live").textContent = text.slice(0, MAX_ANNOUNCED);
    const end = finishReason === "length" ? cutOff(numTokens, parameters.max_tokens) : "The answer is complete.";
    report(this.status, problem || (cost ? end : "Stopped."), problem !== "");
    return cost !== "";
  }

  /**
   * Send a text to a model that classifies, and show its labels.
   *
   * @param {string} content
   * @param {string} domain of the text; empty for none
   * @returns {Promise<boolean>} true if there was no problem
   */
  async classify(content, domain) {
    const running = new AbortController();
    this.setRunning(running);
    this.transcript.addMessage(content, domain);
    this.examples.open = false;
    report(this.status, "Waiting for the labels.");
    let labelled = null;
    let problem = "";
    try {
      labelled = await classify(this.options.model.value, content, running.signal);
    } catch (error) {
      if (!running.signal.aborted) problem = errorText(error);
    }
    if (this.running !== running) return false; // the conversation was cleared meanwhile
    this.setRunning(null);
    if (labelled) this.transcript.addElement(labelList(labelled.labels));
    const words = labelled ? [plural(labelled.tokens, "token"), ...costWords(labelled.cost)] : [];
    this.transcript.endAnswer(words.join(" · ") || (problem ? "failed" : "stopped"));
    const [best] = labelled ? labelled.labels : [];
    byId("answer-live").textContent = best ? best[0] : "";
    report(this.status, problem || (labelled ? "The text is classified." : "Stopped."), problem !== "");
    return labelled !== null;
  }

  /** @param {AbortController | null} running */
  setRunning(running) {
    const [hidden, shown] = running ? [byId("send"), byId("stop")] : [byId("stop"), byId("send")];
    const hadFocus = [hidden, byId("run-examples")].includes(/** @type {HTMLElement} */ (document.activeElement));
    this.running = running;
    hidden.hidden = true;
    shown.hidden = false;
    if (hadFocus) shown.focus();
    for (const id of ["new-chat", "run-examples"]) /** @type {HTMLButtonElement} */ (byId(id)).disabled = running !== null;
  }

  /** @param {string[]} layers offered for colouring tokens */
  setLayers(layers) {
    const select = /** @type {HTMLSelectElement} */ (byId("colour-by"));
    const before = select.value;
    const options = layers.map((name, row) => new Option(`top expert of layer ${name}`, String(row)));
    const byExpert = optionGroup("Experts", [new Option("all layers", "all"), ...options]);
    select.replaceChildren(optionGroup("Adapters", [new Option("adapter or variant", "model")]), byExpert);
    select.value = [...select.options].some((option) => option.value === before) ? before : "all";
    select.onchange = () => {
      const { value } = select;
      this.transcript.colourBy(value === "model" ? value : value === "all" ? null : Number(value));
    };
  }
}

/**
 * Return the status of an answer that a limit ended.
 *
 * @param {number} numTokens
 * @param {unknown} maxTokens undefined if the request had no limit but the context
 */
function cutOff(numTokens, maxTokens) {
  return numTokens === maxTokens
    ? `The answer was cut off after ${plural(numTokens, "token")}. Raise "Max tokens" for more.`
    : "The answer was cut off: the model's context is full.";
}

/** Measures the speed of an answer. */
class AnswerClock {
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
  summary({ completion_tokens: tokens, greenroom }) {
    const words = [plural(tokens, "token")];
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (seconds > 0) words.push(`${rate((tokens - 1) / seconds)} tokens/s`);
    return [...words, ...costWords(greenroom)].join(" · ");
  }
}

/**
 * @param {Usage["greenroom"]} cost
 * @returns {string[]} what the experts of a request cost
 */
function costWords(cost) {
  const remote = cost.expert_remote_bytes;
  return [
    `${count(cost.expert_misses)} of ${plural(cost.expert_requests, "expert request")} missed`,
    `${size(cost.expert_bytes_read)} read${remote ? `, ${size(remote)} of it over the network` : ""}`,
    `${cost.expert_stall_seconds.toFixed(2)} s stalled`,
  ];
}

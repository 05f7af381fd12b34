/** The playground: chats with the served model. */

import { errorText, request } from "./api.js";
import { answer } from "./chat_stream.js";
import { byId, make, report } from "./dom.js";
import { EXAMPLES, addExampleButtons } from "./examples.js";
import { count, plural, rate, size } from "./format.js";
import { weightsText } from "./model_colours.js";

/**
 * @typedef {import("./chat_stream.js").Message} Message
 * @typedef {import("./chat_stream.js").Usage} Usage
 * @typedef {import("./transcript.js").Transcript} Transcript
 */

/** @type {[string, string][]} ids of number fields, and names of request parameters */
const PARAMETERS = [
  ["temperature", "temperature"],
  ["top-p", "top_p"],
  ["max-tokens", "max_tokens"],
  ["seed", "seed"],
];
const EXAMPLE_TOKENS = 64; // per answer when all examples are run
const AUTO = "auto"; // the model that stands for whatever the server chooses
/** @type {Record<string, string>} names of methods that choose adapters for each token */
const ROUTER_NAMES = { arrow: "Arrow" };
const MAX_ANNOUNCED = 4000; // characters of an answer announced to screen readers

export class Playground {
  /** @param {Transcript} transcript */
  constructor(transcript) {
    this.transcript = transcript;
    this.form = /** @type {HTMLFormElement} */ (byId("chat-form"));
    this.message = /** @type {HTMLTextAreaElement} */ (byId("message"));
    this.domain = /** @type {HTMLInputElement} */ (byId("domain"));
    this.examples = /** @type {HTMLDetailsElement} */ (byId("examples"));
    this.model = /** @type {HTMLSelectElement} */ (byId("chat-model"));
    this.status = byId("chat-status");
    /** @type {Message[]} */
    this.messages = [];
    /** @type {string[]} */
    this.routers = [];
    /** @type {AbortController | null} */
    this.running = null;
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
  async loadModels(routers = this.routers) {
    this.routers = routers;
    try {
      const { data } = await (await request("/v1/models")).json();
      const before = this.model.value;
      this.model.replaceChildren(...modelOptions(data, this.routers));
      if ([...this.model.options].some((option) => option.value === before)) this.model.value = before;
      if (!this.running) report(this.status, "");
    } catch (error) {
      report(this.status, errorText(error), true);
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
    const parameters = this.parameters();
    if (!parameters) return;
    this.message.value = "";
    await this.ask(content, this.domain.value.trim(), parameters);
  }

  /** Send each example in a new chat, to show which experts serve which domains. */
  async runExamples() {
    const parameters = this.parameters();
    if (!parameters || this.running) return;
    parameters.max_tokens = Math.min(EXAMPLE_TOKENS, Number(parameters.max_tokens ?? EXAMPLE_TOKENS));
    for (const { domain, question } of EXAMPLES) {
      this.startChat();
      if (!(await this.ask(question, domain, parameters))) return;
    }
    this.startChat();
    const limit = plural(Number(parameters.max_tokens), "token");
    report(this.status, `All examples are answered, in at most ${limit} each. Select an expert in the heatmap to see the domains routed to it.`);
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
    const running = new AbortController();
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
      for await (const event of answer({ ...parameters, messages }, running.signal)) {
        if (event.delta) {
          if (!clock.firstAt) report(this.status, "Generating.");
          clock.tick();
          this.transcript.add(event.delta);
          if (!event.delta.isReasoning) text += event.delta.text;
        }
        if (event.finishReason) finishReason = event.finishReason;
        if (event.weights) routed = weightsText(event.weights);
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

  /**
   * Read the model and the sampling parameters from the form; empty fields are left to the server.
   *
   * @returns {Record<string, unknown> | null} null if a field is invalid, which the browser reports
   */
  parameters() {
    /** @type {Record<string, unknown>} */
    const parameters = this.model.value ? { model: this.model.value } : {};
    const method = this.model.selectedOptions[0]?.dataset.method;
    if (method) Object.assign(parameters, { model: AUTO, routing: { method } });
    for (const [id, name] of PARAMETERS) {
      const field = /** @type {HTMLInputElement} */ (byId(id));
      if (!field.reportValidity()) return null;
      if (field.value !== "") parameters[name] = field.valueAsNumber;
    }
    return parameters;
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
 * Return options of the model selector: base models and routers, then variants and adapters in groups.
 *
 * @param {{id: string, parent: string | null}[]} models
 * @param {string[]} routers
 * @returns {HTMLElement[]}
 */
function modelOptions(models, routers) {
  /** @param {string} name */
  const option = (name) => new Option(name, name);
  /** @type {[string, string[]][]} */
  const groups = [["Variants", []], ["Adapters", []]];
  const own = [];
  for (const { id, parent } of models) {
    if (!parent || id === AUTO) own.push(option(id));
    else groups[id.startsWith(`${parent}:`) ? 0 : 1][1].push(id);
  }
  const others = groups.filter(([, names]) => names.length).map(([label, names]) => optionGroup(label, names.map(option)));
  return [...own, ...routers.map(routerOption), ...others];
}

/**
 * @param {string} label
 * @param {HTMLElement[]} options
 */
function optionGroup(label, options) {
  const group = make("optgroup");
  group.label = label;
  group.append(...options);
  return group;
}

/**
 * Return an option for the model auto with a router that chooses adapters for each token.
 *
 * @param {string} method
 */
function routerOption(method) {
  const label = `${AUTO}, for each token (${ROUTER_NAMES[method] ?? method})`;
  const option = new Option(label, `${AUTO} ${method}`); // no name of an adapter or a variant has a space
  option.dataset.method = method;
  return option;
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
    words.push(`${count(greenroom.expert_misses)} of ${plural(greenroom.expert_requests, "expert request")} missed`);
    words.push(`${size(greenroom.expert_bytes_read)} read`);
    words.push(`${greenroom.expert_stall_seconds.toFixed(2)} s stalled`);
    return words.join(" · ");
  }
}

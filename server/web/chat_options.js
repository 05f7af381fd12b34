/** The options of the playground's requests: model, sampling parameters, system prompt and adapters. */

import { request } from "./api.js";
import { AdapterMix } from "./adapter_mix.js";
import { byId, make, write } from "./dom.js";

/** @typedef {import("./chat_stream.js").Message} Message */

/** @type {[string, string][]} ids of number fields, and names of request parameters */
const PARAMETERS = [
  ["temperature", "temperature"],
  ["top-p", "top_p"],
  ["max-tokens", "max_tokens"],
  ["seed", "seed"],
];
const AUTO = "auto"; // the model that stands for whatever the server chooses
/** @type {Record<string, string>} names of methods that choose adapters for each token */
const ROUTER_NAMES = { arrow: "Arrow" };

/** @typedef {{id: string, parent: string | null, meta: {tasks: string[]}}} Model */

export class ChatOptions {
  constructor() {
    this.model = /** @type {HTMLSelectElement} */ (byId("chat-model"));
    this.system = /** @type {HTMLTextAreaElement} */ (byId("system-prompt"));
    this.instructions = /** @type {HTMLDetailsElement} */ (byId("instructions"));
    this.summary = byId("instructions-summary");
    this.mix = new AdapterMix(() => this.showSummary());
    /** @type {string[]} */
    this.routers = [];
    this.numLists = 0;
    /** @type {Set<string>} models that classify and write no text */
    this.labelModels = new Set();
    this.model.addEventListener("change", () => this.showTask());
    this.system.addEventListener("input", () => this.showSummary());
  }

  /**
   * List the models of the server.
   *
   * @param {string[]} [routers] methods of the model auto that can choose adapters for each token; none: those known
   * @throws {import("./api.js").ServerError}
   */
  async loadModels(routers = this.routers) {
    this.routers = routers;
    const number = ++this.numLists;
    /** @type {{data: Model[]}} */
    const { data } = await (await request("/v1/models")).json();
    if (number !== this.numLists) return; // a later list is on its way, or here
    const before = this.model.value;
    const { own, variants, adapters } = sortModels(data);
    const groups = [["Variants", variants], ["Adapters", adapters]].filter(([, names]) => names.length);
    this.model.replaceChildren(
      ...own.map((name) => new Option(name)),
      ...this.routers.map(routerOption),
      ...groups.map(([label, names]) => optionGroup(String(label), [...names].map((name) => new Option(name)))),
    );
    if ([...this.model.options].some((option) => option.value === before)) this.model.value = before;
    this.mix.offer(adapters);
    this.labelModels = new Set(data.filter(onlyClassifies).map(({ id }) => id));
    this.showTask();
  }

  /** @returns {boolean} true if the chosen model names labels instead of answering */
  get isForLabels() {
    return this.labelModels.has(this.model.value);
  }

  /** Hide what a model that classifies has no use for. */
  showTask() {
    byId("playground").classList.toggle("for-labels", this.isForLabels);
  }

  /** Say what a closed "System prompt and adapters" contains. */
  showSummary() {
    const words = [...(this.system.value.trim() ? ["system prompt"] : []), this.mix.describe()].filter(Boolean);
    write(this.summary, words.length ? `(${words.join(", ")})` : "");
  }

  /** @returns {Message[]} the messages that begin every chat */
  get firstMessages() {
    const content = this.system.value.trim();
    return content ? [{ role: "system", content }] : [];
  }

  /**
   * Read the fields of a request from the form; empty ones are left to the server.
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
    const adapters = this.readMix();
    if (!adapters) return null;
    return adapters.length ? { ...parameters, adapters } : parameters;
  }

  readMix() {
    const adapters = this.mix.read();
    if (adapters) return adapters;
    this.instructions.open = true; // the browser reports no field of a closed one
    return this.mix.read();
  }
}

/** @param {Model} model */
function onlyClassifies({ meta: { tasks } }) {
  return tasks.includes("classify") && !tasks.includes("generate");
}

/**
 * @param {Model[]} models
 * @returns {{own: string[], variants: string[], adapters: string[]}} names of base models and auto, and of the others
 */
function sortModels(models) {
  /** @type {{own: string[], variants: string[], adapters: string[]}} */
  const names = { own: [], variants: [], adapters: [] };
  for (const { id, parent } of models) {
    if (!parent || id === AUTO) names.own.push(id);
    else if (id.startsWith(`${parent}:`)) names.variants.push(id);
    else names.adapters.push(id);
  }
  return names;
}

/**
 * @param {string} label
 * @param {HTMLElement[]} options
 */
export function optionGroup(label, options) {
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

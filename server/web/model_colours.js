/** The colours of adapters, variants and base models: of the tokens that they wrote, and a legend. */

import { byId, make } from "./dom.js";
import { percent } from "./format.js";

/**
 * @typedef {import("./chat_stream.js").Weights} Weights
 * @typedef {import("./transcript.js").Token} Token
 */

const NUM_COLOURS = 7; // --model-0 to --model-6 of the style sheet; further models share --model-rest

/**
 * Return the weights of what wrote a token: its adapters, or without any its model.
 *
 * @param {Token} token
 * @returns {Weights} the means over the model tokens of its text
 */
export function weightsOf({ adapters, model }) {
  /** @type {Weights} */
  const means = {};
  for (const each of adapters) {
    for (const [name, weight] of Object.entries(each)) means[name] = (means[name] ?? 0) + weight / adapters.length;
  }
  return Object.keys(means).length ? means : { [model]: 1 };
}

/**
 * @param {Weights} weights
 * @returns {string} names and weights in percent, the heaviest first
 */
export function weightsText(weights) {
  return byWeight(weights).filter(([, weight]) => weight).map(([name, weight]) => `${name} ${percent(weight)}`).join(", ");
}

/** Colours of models in the order in which they appear, and how much each of them has written. */
export class ModelColours {
  /** @type {Map<string, number>} sums of weights by model */
  #totals = new Map();
  #numTokens = 0;

  constructor() {
    this.legend = byId("model-legend");
  }

  clear() {
    this.#totals.clear();
    this.#numTokens = 0;
    this.legend.replaceChildren();
  }

  /** @param {Token} token a new one */
  add(token) {
    this.#numTokens += 1;
    const numBefore = this.#totals.size;
    for (const [name, weight] of Object.entries(weightsOf(token))) {
      this.#totals.set(name, (this.#totals.get(name) ?? 0) + weight);
    }
    if (this.#totals.size !== numBefore) this.showLegend();
  }

  /**
   * @param {string} name
   * @returns {string} CSS colour
   */
  colour(name) {
    const place = [...this.#totals.keys()].indexOf(name);
    return place >= 0 && place < NUM_COLOURS ? `var(--model-${place})` : "var(--model-rest)";
  }

  /**
   * Colour a token by what wrote it: its tint is that of the heaviest adapter, and a bar has the weights of all.
   *
   * @param {Token} token
   */
  paint(token) {
    const weights = weightsOf(token);
    const { style } = token.element;
    style.setProperty("--tint", this.colour(byWeight(weights)[0][0]));
    style.setProperty("--bar", this.bar(weights));
    token.element.title = weightsText(weights);
  }

  /**
   * @param {Weights} weights
   * @returns {string} CSS gradient with a part for each model, in the order of the legend
   */
  bar(weights) {
    const names = [...this.#totals.keys()].filter((name) => (weights[name] ?? 0) > 0);
    const total = names.reduce((sum, name) => sum + weights[name], 0);
    let end = 0;
    const stops = names.map((name) => {
      const begin = end;
      end += (100 * weights[name]) / total;
      return `${this.colour(name)} ${begin.toFixed(1)}% ${end.toFixed(1)}%`;
    });
    return stops.length ? `linear-gradient(to right, ${stops.join(", ")})` : "none";
  }

  /** Write the legend: each model with its mean weight over the tokens on the page. */
  showLegend() {
    const items = [...this.#totals].map(([name, total]) => {
      const item = make("li");
      const chip = make("span", "chip");
      chip.style.background = this.colour(name);
      chip.setAttribute("aria-hidden", "true");
      item.append(chip, make("bdi", "", name), make("span", "amount", percent(total / this.#numTokens)));
      return item;
    });
    this.legend.replaceChildren(...items);
  }
}

/**
 * @param {Weights} weights
 * @returns {[string, number][]} never empty for the weights of a token
 */
function byWeight(weights) {
  return Object.entries(weights).sort(([, one], [, other]) => other - one);
}

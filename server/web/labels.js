/** Labels of texts, by models that classify. */

import { request } from "./api.js";
import { make } from "./dom.js";

const MAX_LABELS = 5;

/**
 * @typedef {import("./chat_stream.js").Usage["greenroom"]} Cost
 * @typedef {object} Labelled
 * @property {[string, number][]} labels the likeliest labels with their probabilities
 * @property {number} tokens of the text
 * @property {Cost} cost
 */

/**
 * Classify a text.
 *
 * @param {string} model empty for the server's own
 * @param {string} text
 * @param {AbortSignal} signal
 * @returns {Promise<Labelled>}
 * @throws {import("./api.js").ServerError} unless the signal aborted the request
 */
export async function classify(model, text, signal) {
  const body = model ? { model, input: text } : { input: text };
  const { data, labels, usage } = await (await request("/v1/classify", { body, signal })).json();
  /** @type {number[]} */
  const probabilities = data[0].probs;
  const pairs = probabilities.map((probability, index) => /** @type {[string, number]} */ ([labels[index], probability]));
  pairs.sort(([, one], [, other]) => other - one);
  return { labels: pairs.slice(0, MAX_LABELS), tokens: usage.prompt_tokens, cost: usage.greenroom };
}

/**
 * Make a list of labels, each with a bar.
 *
 * @param {[string, number][]} labels
 */
export function labelList(labels) {
  const list = make("ol", "labels");
  for (const [label, probability] of labels) {
    const item = make("li");
    const bar = make("div", "meter");
    const filled = make("div");
    filled.style.width = `${100 * probability}%`;
    bar.append(filled);
    item.append(make("span", "label-name", label), bar, make("span", "label-share", `${(100 * probability).toFixed(1)} %`));
    list.append(item);
  }
  return list;
}

/** The text about the load balance of the layers: the most uneven one, dead and overloaded experts by name. */

import { byId, write } from "./dom.js";
import { count } from "./format.js";

/** @typedef {import("./experts.js").LayerBalance} LayerBalance */

const MAX_NAMES = 12;

/**
 * Describe one layer in a part of a sentence.
 *
 * @param {LayerBalance} layer
 */
export function describeLayer({ cv, max_over_mean: ratio }) {
  return `busiest expert ${ratio.toFixed(1)} times the mean, variation ${cv.toFixed(2)}`;
}

export class BalanceText {
  constructor() {
    this.text = byId("balance-text");
    /** @type {LayerBalance[] | null} */
    this.shown = null;
  }

  /** @param {LayerBalance[]} layers */
  show(layers) {
    if (layers === this.shown) return;
    this.shown = layers;
    this.text.hidden = !layers.length;
    if (!layers.length) return;
    const worst = layers.reduce((one, other) => (other.max_over_mean > one.max_over_mean ? other : one));
    const parts = [
      `Load balance of recent tokens: most uneven in layer ${worst.layer}, ${describeLayer(worst)}.`,
      names("Dead, no token", layers, (layer) => layer.dead),
      names("Overloaded, over four times the mean", layers, (layer) => layer.overloaded),
    ];
    write(this.text, parts.filter(Boolean).join(" "));
  }
}

/**
 * @param {string} title
 * @param {LayerBalance[]} layers
 * @param {(layer: LayerBalance) => number[]} of
 */
function names(title, layers, of) {
  const all = layers.flatMap((layer) => of(layer).map((expert) => `${layer.layer}/${expert}`));
  if (!all.length) return "";
  const more = all.length > MAX_NAMES ? ` and ${count(all.length - MAX_NAMES)} more` : "";
  return `${title} (layer/expert): ${all.slice(0, MAX_NAMES).join(", ")}${more}.`;
}

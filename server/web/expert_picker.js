/** The choice of an expert by its numbers, where a cell of the heatmap is too small to hit. */

import { byId } from "./dom.js";

/** @typedef {import("./experts.js").Experts} Experts */

const NONE = "–";

export class ExpertPicker {
  /** @param {(index: number) => void} onSelect called with an index of an expert; -1 for none */
  constructor(onSelect) {
    this.layer = /** @type {HTMLSelectElement} */ (byId("selected-layer"));
    this.expert = /** @type {HTMLSelectElement} */ (byId("selected-expert"));
    /** @type {Experts | null} */
    this.experts = null;
    this.layer.addEventListener("change", () => {
      this.offerExperts();
      onSelect(this.chosen());
    });
    this.expert.addEventListener("change", () => onSelect(this.chosen()));
  }

  /** @param {Experts} experts of which one can be chosen */
  setExperts(experts) {
    this.experts = experts;
    offer(this.layer, experts.layers);
    this.offerExperts();
  }

  /** Offer the experts of the chosen layer, or of the widest one. */
  offerExperts() {
    const { experts, layer } = this;
    if (!experts) return;
    const row = experts.rowOf.get(Number(layer.value));
    offer(this.expert, [...Array(row === undefined ? experts.width : experts.sizes[row]).keys()]);
  }

  /** @param {number} index expert that was selected elsewhere; -1 for none */
  show(index) {
    if (!this.experts || index === this.chosen()) return;
    this.layer.value = index < 0 ? NONE : String(this.experts.layer(index));
    this.offerExperts();
    this.expert.value = index < 0 ? NONE : String(this.experts.expert(index));
  }

  /** Return the index of the chosen expert; -1 unless a layer and one of its experts are chosen. */
  chosen() {
    const { experts, layer, expert } = this;
    if (!experts || layer.value === NONE || expert.value === NONE) return -1;
    return experts.index(Number(layer.value), Number(expert.value));
  }
}

/**
 * @param {HTMLSelectElement} select
 * @param {number[]} numbers
 */
function offer(select, numbers) {
  const before = select.value;
  select.replaceChildren(...[NONE, ...numbers].map((value) => new Option(String(value))));
  select.value = numbers.includes(Number(before)) && before !== "" ? before : NONE;
}

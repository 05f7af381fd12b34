/** The expert that was chosen: what it is, and moving it. */

import { request, sentence } from "./api.js";
import { byId, make, report, write } from "./dom.js";
import { TIER_NAMES } from "./experts.js";
import { count, percent, size } from "./format.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {"pin" | "unpin" | "prefetch" | "evict"} Action
 * @typedef {{bytes: number, variant: string, quarantined: string | null}} Details
 */

/** @type {Record<Action, [string, string]>} what to say of one that changed, and of one that did not */
const OUTCOMES = {
  pin: ["is pinned.", "was pinned already."],
  unpin: ["is pinned no longer.", "was not pinned."],
  prefetch: ["is being read.", "is not read: it is in memory or on its way, or there is no slot for it."],
  evict: ["has left memory.", "was not evicted: it is in use, on its way, pinned, or not in memory."],
};

export class Inspector {
  constructor() {
    this.box = byId("inspector");
    this.title = byId("expert-title");
    this.facts = byId("expert-facts");
    this.result = byId("result");
    this.pinButton = byId("pin");
    /** @type {Experts | null} */
    this.experts = null;
    this.chosen = -1;
    /** @type {Details | null} */
    this.details = null;
    this.pinButton.addEventListener("click", () => this.act("pin", this.chosen));
    byId("prefetch").addEventListener("click", () => this.act("prefetch", this.chosen));
    byId("evict").addEventListener("click", () => this.act("evict", this.chosen));
  }

  /** @param {Experts} experts of a server that may be another than before */
  take(experts) {
    const isOther = this.experts !== null && this.experts.size !== experts.size;
    this.experts = experts;
    if (isOther || !experts.exists(this.chosen)) this.choose(-1);
    this.show();
  }

  /** @param {number} index -1 for none */
  choose(index) {
    this.chosen = index;
    this.details = null;
    byId("expert-empty").hidden = index >= 0;
    for (const id of ["expert-actions", "expert-body"]) byId(id).hidden = index < 0;
    report(this.result, "");
    if (index < 0) write(this.title, "Expert");
    else void this.look(index);
    this.show();
  }

  /** Put the focus where the chosen one can be moved. */
  focus() {
    this.pinButton.focus();
  }

  /** Show what is known now. */
  show() {
    const { experts, chosen } = this;
    if (!experts || chosen < 0) return;
    write(this.title, experts.name(chosen));
    write(this.pinButton, experts.pinned[chosen] ? "Unpin" : "Pin");
    const row = experts.row(chosen);
    const ofLayer = experts.tokens.subarray(row * experts.width, (row + 1) * experts.width);
    const inLayer = ofLayer.reduce((sum, tokens) => sum + tokens, 0);
    const tokens = experts.tokens[chosen];
    /** @type {[string, string][]} */
    const facts = [
      ["Where", TIER_NAMES[experts.residency[chosen]] + (experts.pinned[chosen] ? ", pinned" : "")],
      ["Tokens", inLayer ? `${count(tokens)}, ${percent(tokens / inLayer)} of its layer's` : count(tokens)],
    ];
    if (this.details) facts.push(["Size", size(this.details.bytes)]);
    if (this.details && this.details.variant !== "base") facts.push(["Variant", this.details.variant]);
    if (this.details?.quarantined) facts.push(["Quarantined", this.details.quarantined]);
    this.write(facts);
  }

  /** @param {[string, string][]} facts */
  write(facts) {
    while (this.facts.children.length > 2 * facts.length) this.facts.lastElementChild?.remove();
    while (this.facts.children.length < 2 * facts.length) this.facts.append(make("dt"), make("dd"));
    facts.flat().forEach((text, place) => write(/** @type {HTMLElement} */ (this.facts.children[place]), text));
  }

  /** @param {number} index of the expert to ask the server about */
  async look(index) {
    const { experts } = this;
    if (!experts) return;
    try {
      const response = await request(`/v1/experts/${experts.layer(index)}/${experts.expert(index)}`);
      const details = await response.json();
      if (this.chosen !== index || this.experts !== experts) return;
      this.details = details;
      this.show();
    } catch (error) {
      if (this.chosen === index) report(this.result, sentence(error), true);
    }
  }

  /**
   * Move an expert, and say how that went.
   *
   * @param {"pin" | "prefetch" | "evict"} wish of which the first undoes itself
   * @param {number} index
   */
  async act(wish, index) {
    const { experts } = this;
    if (!experts?.exists(index)) return;
    /** @type {Action} */
    const action = wish === "pin" && experts.pinned[index] ? "unpin" : wish;
    const place = [experts.layer(index), experts.expert(index)];
    try {
      const response = await request(`/v1/experts/${action}`, { body: { experts: [place] } });
      const { changed } = await response.json();
      report(this.result, `${experts.name(index)} ${OUTCOMES[action][changed ? 0 : 1]}`);
    } catch (error) {
      report(this.result, sentence(error), true);
    }
  }
}

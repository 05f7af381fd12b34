/** The panel of the selected expert: its state, and buttons to pin, prefetch and evict it. */

import { errorText, request } from "./api.js";
import { byId, make, report, write } from "./dom.js";
import { TIER_NAMES } from "./experts.js";
import { count, percent, size } from "./format.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {"pin" | "unpin" | "prefetch" | "evict"} Action
 * @typedef {{bytes: number, variant: string, quarantined: string | null, variants?: Record<string, string>}} Details
 *   with the tiers of variants of the expert, by name and version
 */

/** @type {Record<Action, [string, string]>} result texts if the expert changed, and if it did not */
const OUTCOMES = {
  pin: ["is pinned.", "was already pinned."],
  unpin: ["is no longer pinned.", "was not pinned."],
  prefetch: ["is being prefetched.", "was not prefetched: it is already in memory or loading, or no slot is free."],
  evict: ["was evicted.", "was not evicted."],
};
/** @type {Record<string, string>} result texts of an eviction, by what prevented it */
const OBSTACLES = {
  not_resident: "was not evicted: it is not in memory.",
  pinned: "was not evicted: it is pinned. Unpin it first.",
  loading: "was not evicted: it is being read.",
  in_use: "was not evicted: a request is using it. Try again.",
};

export class Inspector {
  constructor() {
    this.box = byId("inspector");
    this.head = byId("expert-head");
    this.title = byId("expert-title");
    this.facts = byId("expert-facts");
    this.result = byId("result");
    this.pinButton = byId("pin");
    /** @type {Experts | null} */
    this.experts = null;
    this.selected = -1;
    /** @type {Details | null} */
    this.details = null;
    this.pinButton.addEventListener("click", () => this.act("pin", this.selected));
    byId("prefetch").addEventListener("click", () => this.act("prefetch", this.selected));
    byId("evict").addEventListener("click", () => this.act("evict", this.selected));
  }

  /** @param {Experts} experts the first snapshot of a connection, possibly of another server */
  setExperts(experts) {
    const isOther = this.experts !== null && this.experts.size !== experts.size;
    this.experts = experts;
    if (isOther || !experts.exists(this.selected)) this.select(-1);
    this.show();
  }

  /** @param {number} index -1 for none */
  select(index) {
    this.selected = index;
    this.details = null;
    this.box.hidden = index < 0;
    report(this.result, "");
    if (index >= 0) void this.loadDetails(index);
    this.show();
  }

  /** Scroll the least that brings the name, the buttons and the state of the selected expert into view. */
  reveal() {
    this.head.scrollIntoView({ block: "nearest" });
  }

  /** Focus the first button of the selected expert. */
  focus() {
    this.pinButton.focus();
  }

  /** Show the current state of the selected expert. */
  show() {
    const { experts, selected } = this;
    if (!experts || selected < 0) return;
    write(this.title, experts.name(selected));
    write(this.pinButton, experts.pinned[selected] ? "Unpin" : "Pin");
    const row = experts.row(selected);
    const ofLayer = experts.tokens.subarray(row * experts.width, (row + 1) * experts.width);
    const inLayer = ofLayer.reduce((sum, tokens) => sum + tokens, 0);
    const tokens = experts.tokens[selected];
    /** @type {[string, string][]} */
    const facts = [
      ["Residency", TIER_NAMES[experts.residency[selected]] + (experts.pinned[selected] ? ", pinned" : "")],
      ["Tokens", inLayer ? `${count(tokens)} since the start, ${percent(tokens / inLayer)} of the layer's choices` : count(tokens)],
    ];
    if (this.details) facts.push(["Size", size(this.details.bytes)]);
    if (this.details && this.details.variant !== "base") facts.push(["Variant", this.details.variant]);
    const variants = Object.entries(this.details?.variants ?? {});
    if (variants.length) facts.push(["Variants", variants.map(([name, tier]) => `${name}: ${tier}`).join(", ")]);
    if (this.details?.quarantined) facts.push(["Quarantined", this.details.quarantined]);
    this.write(facts);
  }

  /** @param {[string, string][]} facts */
  write(facts) {
    while (this.facts.children.length > facts.length) this.facts.lastElementChild?.remove();
    while (this.facts.children.length < facts.length) {
      const fact = make("div");
      fact.append(make("dt"), make("dd"));
      this.facts.append(fact);
    }
    facts.forEach((texts, place) => {
      const fact = this.facts.children[place];
      texts.forEach((text, part) => write(/** @type {HTMLElement} */ (fact.children[part]), text));
    });
  }

  /** @param {number} index expert whose details are requested from the server */
  async loadDetails(index) {
    const { experts } = this;
    if (!experts) return;
    try {
      const response = await request(`/v1/experts/${experts.layer(index)}/${experts.expert(index)}`);
      const details = await response.json();
      if (this.selected !== index || this.experts !== experts) return;
      this.details = details;
      this.show();
    } catch (error) {
      if (this.selected === index) report(this.result, errorText(error), true);
    }
  }

  /**
   * Pin, unpin, prefetch or evict an expert, and show the result.
   *
   * @param {"pin" | "prefetch" | "evict"} command "pin" unpins a pinned expert
   * @param {number} index
   */
  async act(command, index) {
    const { experts } = this;
    if (!experts?.exists(index)) return;
    /** @type {Action} */
    const action = command === "pin" && experts.pinned[index] ? "unpin" : command;
    const place = [experts.layer(index), experts.expert(index)];
    try {
      const response = await request(`/v1/experts/${action}`, { body: { experts: [place] } });
      const { changed, unchanged = {} } = await response.json();
      const [obstacle] = Object.keys(unchanged);
      report(this.result, `${experts.name(index)} ${OBSTACLES[obstacle] ?? OUTCOMES[action][changed ? 0 : 1]}`);
    } catch (error) {
      report(this.result, errorText(error), true);
    }
  }
}

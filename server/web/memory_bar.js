/** The memory panel: one bar of the server's memory budget, split by use. */

import { byId, make, write } from "./dom.js";
import { plural, size } from "./format.js";

/**
 * @typedef {import("./experts.js").Memory} Memory
 * @typedef {{segment: HTMLElement, item: HTMLElement, amount: HTMLElement}} Part
 */

const UPDATE_INTERVAL_MS = 250;
/** @type {Record<string, string>} labels by the server's names, in the order of the bar */
const NAMES = {
  trunk: "Trunk",
  process: "Process",
  step: "Step",
  requests: "Requests",
  unaccounted: "Unaccounted",
  kv_cache: "KV cache",
  adapters: "Adapters",
  experts: "Experts",
};

export class MemoryBar {
  constructor() {
    this.amount = byId("memory-amount");
    this.meter = byId("memory-meter");
    this.legend = byId("memory-parts");
    this.note = byId("memory-note");
    /** @type {Map<string, Part>} */
    this.parts = new Map();
    this.shownAt = -Infinity;
    for (const name of Object.keys(NAMES)) this.add(name);
  }

  /**
   * @param {Memory} memory
   * @param {number} now
   */
  show(memory, now) {
    if (now - this.shownAt < UPDATE_INTERVAL_MS) return;
    this.shownAt = now;
    const used = Object.values(memory.parts).reduce((sum, bytes) => sum + bytes, 0);
    const total = Math.max(memory.budget_bytes, used, 1);
    for (const [name, { segment, item, amount }] of this.parts) {
      const bytes = memory.parts[name] ?? 0;
      segment.style.width = `${(100 * bytes) / total}%`;
      item.hidden = bytes === 0;
      write(amount, size(bytes));
    }
    const text = `${size(used)} of ${size(memory.budget_bytes)}`;
    write(this.amount, text);
    this.meter.setAttribute("aria-valuenow", String(Math.round((100 * used) / total)));
    this.meter.setAttribute("aria-valuetext", text);
    write(this.note, note(memory));
  }

  /** @param {string} name */
  add(name) {
    const segment = make("div", `part-${name}`);
    this.meter.append(segment);
    const item = make("li");
    const chip = make("span", `chip part-${name}`);
    chip.setAttribute("aria-hidden", "true");
    const amount = make("span", "amount");
    item.append(chip, make("span", "", NAMES[name]), amount);
    this.legend.append(item);
    this.parts.set(name, { segment, item, amount });
  }
}

/** @param {Memory} memory */
function note({ num_shrinks, num_grows, reason }) {
  if (num_shrinks + num_grows === 0) return "";
  return `Expert memory shrank ${plural(num_shrinks, "time")} and grew ${plural(num_grows, "time")}. Last reason: ${reason}.`;
}

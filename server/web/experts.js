/** The state of every expert: residency, routed tokens, pins, and heat, which is recent traffic. */

import { describeLayer } from "./balance.js";

const HALF_LIFE_MS = 5000; // decay of the heat
const NO_EXPERT = 255; // fills layers that have fewer experts than the widest
export const DISK = 0;
export const HOST = 1;
export const DEVICE = 2;
export const TIER_NAMES = ["disk", "host", "device"];

/**
 * @typedef {{count: number, seconds: number}} Latency observations since the start, and their sum
 * @typedef {{budget_bytes: number, parts: Record<string, number>, num_shrinks: number, num_grows: number,
 *   reason: string}} Memory
 * @typedef {{budget_bytes: number, num_slots: number, num_resident: number, resident_bytes: number,
 *   num_pinned: number}} MemoryTier
 * @typedef {{num_experts: number, total_bytes: number}} DiskTier
 * @typedef {{layer: number, cv: number, max_over_mean: number, dead: number[], overloaded: number[]}} LayerBalance
 * @typedef {object} Totals totals since the start of the server, and gauges
 * @property {{device?: MemoryTier, host?: MemoryTier, disk: DiskTier}} tiers
 * @property {{held_bytes: number, total_bytes: number, seconds_left: number | null,
 *   reason: string | null} | null} download of the rest of a model elsewhere to the disk
 * @property {number | null} hit_ratio
 * @property {number | null} optimal_hit_ratio
 * @property {number} stall_seconds
 * @property {number} loaded_bytes
 * @property {number} prompt_tokens
 * @property {number} generation_tokens
 * @property {number} num_requests_running
 * @property {number} num_requests_waiting
 * @property {number} kv_cache_usage
 * @property {Memory} memory
 * @property {number} uptime_seconds
 * @property {number} step_seconds time in which the engine computed
 * @property {number} num_load_failures
 * @property {number} num_quarantined
 * @property {Record<"stop" | "length" | "abort" | "error" | "deadline", number>} finished_requests
 * @property {Latency} first_token
 * @property {Latency} inter_token
 * @typedef {Totals & {model: string, layers: {layer: number, num_experts: number}[], residency: number[][],
 *   tokens: number[][], pinned: number[][], balance: LayerBalance[]}} Snapshot
 * @typedef {Totals & {residency: number[][], tokens: number[][], pinned: number[][] | null,
 *   balance: LayerBalance[] | null}} Update
 */

/** All experts, by index: row * width + expert. Rows are layers in model order. */
export class Experts {
  /**
   * @param {Snapshot} snapshot
   * @param {number} now milliseconds of a monotonic clock
   */
  constructor(snapshot, now) {
    this.model = snapshot.model;
    this.layers = snapshot.layers.map((each) => each.layer);
    this.sizes = snapshot.layers.map((each) => each.num_experts);
    this.width = Math.max(0, ...this.sizes);
    this.size = this.layers.length * this.width;
    this.rowOf = new Map(this.layers.map((layer, row) => [layer, row]));
    this.residency = new Uint8Array(this.size).fill(NO_EXPERT);
    this.tokens = new Float64Array(this.size);
    this.heat = new Float32Array(this.size);
    this.pinned = new Uint8Array(this.size);
    this.maxHeat = 0;
    this.heatAt = now;
    snapshot.residency.forEach((tiers, row) => this.residency.set(tiers, row * this.width));
    snapshot.tokens.forEach((counts, row) => this.tokens.set(counts, row * this.width));
    this.setPinned(snapshot.pinned);
    this.balance = snapshot.balance; // of each layer; empty until there were enough tokens
    const maxTokens = this.tokens.reduce((one, other) => Math.max(one, other), 1);
    this.heat.set(this.tokens.map((count) => count / maxTokens)); // show past traffic faintly until there is new traffic
  }

  /** @param {Experts} other compared by model name and layer sizes */
  isSameModel(other) {
    return this.model === other.model && String(this.sizes) === String(other.sizes);
  }

  /**
   * @param {Update} update
   * @param {number} now
   */
  update(update, now) {
    this.fade(now);
    for (const [layer, expert, tier] of update.residency) this.residency[this.index(layer, expert)] = tier;
    for (const [layer, expert, more] of update.tokens) {
      const index = this.index(layer, expert);
      this.tokens[index] += more;
      this.heat[index] += more;
    }
    if (update.pinned !== null) this.setPinned(update.pinned);
    if (update.balance !== null) this.balance = update.balance;
  }

  /**
   * Decay the heat to its value at a time.
   *
   * @param {number} now
   */
  fade(now) {
    const factor = 0.5 ** ((now - this.heatAt) / HALF_LIFE_MS);
    let maxHeat = 0;
    for (let index = 0; index < this.size; index += 1) {
      const heat = this.heat[index] * factor;
      this.heat[index] = heat;
      if (heat > maxHeat) maxHeat = heat;
    }
    this.maxHeat = maxHeat;
    this.heatAt = now;
  }

  /** @param {number[][]} places layer and expert of all pinned experts */
  setPinned(places) {
    this.pinned.fill(0);
    for (const [layer, expert] of places) this.pinned[this.index(layer, expert)] = 1;
  }

  /**
   * @param {number} layer
   * @param {number} expert
   */
  index(layer, expert) {
    return /** @type {number} */ (this.rowOf.get(layer)) * this.width + expert;
  }

  /** @param {number} index */
  row(index) {
    return Math.floor(index / this.width);
  }

  /** @param {number} index */
  layer(index) {
    return this.layers[this.row(index)];
  }

  /** @param {number} index */
  expert(index) {
    return index % this.width;
  }

  /** @param {number} index */
  exists(index) {
    return index >= 0 && index < this.size && this.residency[index] !== NO_EXPERT;
  }

  /** @param {number} index */
  name(index) {
    return `Layer ${this.layer(index)}, expert ${this.expert(index)}`;
  }

  /** @param {number} index expert to describe in one sentence */
  describe(index) {
    const words = [this.residency[index] === DISK ? "on disk" : `in ${TIER_NAMES[this.residency[index]]} memory`];
    if (this.pinned[index]) words.push("pinned");
    words.push(`${this.tokens[index].toLocaleString("en")} tokens`);
    const recent = Math.round(this.heat[index]);
    if (recent) words.push(`about ${recent.toLocaleString("en")} recent`);
    const balance = this.balance[this.row(index)];
    if (balance) words.push(`its layer: ${describeLayer(balance)}`);
    return `${this.name(index)}: ${words.join(", ")}`;
  }
}

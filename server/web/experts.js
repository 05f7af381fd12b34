/** What is known of every expert: where it is, what went to it, and how warm that leaves it. */

const HALF_LIFE_MS = 5000; // of the warmth
const NO_EXPERT = 255; // in a layer that has fewer than the widest
export const DISK = 0;
export const HOST = 1;
export const DEVICE = 2;
export const TIER_NAMES = ["disk", "host", "device"];

/**
 * @typedef {{budget_bytes: number, parts: Record<string, number>, num_shrinks: number, num_grows: number,
 *   reason: string}} Memory
 * @typedef {{budget_bytes: number, num_slots: number, num_resident: number, resident_bytes: number,
 *   num_pinned: number}} MemoryTier
 * @typedef {{num_experts: number, total_bytes: number}} DiskTier
 * @typedef {object} Totals since the server's start
 * @property {{device?: MemoryTier, host?: MemoryTier, disk: DiskTier}} tiers
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
 * @typedef {Totals & {model: string, layers: {layer: number, num_experts: number}[], residency: number[][],
 *   tokens: number[][], pinned: number[][]}} Snapshot
 * @typedef {Totals & {residency: number[][], tokens: number[][], pinned: number[][] | null}} Update
 */

/** All experts by their index, which is row * width + expert; rows are layers in their order. */
export class Experts {
  /**
   * @param {Snapshot} snapshot
   * @param {number} now milliseconds of some clock
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
    this.warmest = 0;
    this.warmedAt = now;
    snapshot.residency.forEach((tiers, row) => this.residency.set(tiers, row * this.width));
    snapshot.tokens.forEach((counts, row) => this.tokens.set(counts, row * this.width));
    this.pin(snapshot.pinned);
    const most = this.tokens.reduce((one, other) => Math.max(one, other), 1);
    this.heat.set(this.tokens.map((count) => count / most)); // until something happens, the past is seen faintly
  }

  /** @param {Experts} other whether they are of the same model, as far as one can see */
  isLike(other) {
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
    if (update.pinned !== null) this.pin(update.pinned);
  }

  /**
   * Let warmth go as time does.
   *
   * @param {number} now
   */
  fade(now) {
    const factor = 0.5 ** ((now - this.warmedAt) / HALF_LIFE_MS);
    let warmest = 0;
    for (let index = 0; index < this.size; index += 1) {
      const heat = this.heat[index] * factor;
      this.heat[index] = heat;
      if (heat > warmest) warmest = heat;
    }
    this.warmest = warmest;
    this.warmedAt = now;
  }

  /** @param {number[][]} places */
  pin(places) {
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

  /** @param {number} index one sentence of where it is and what went to it */
  describe(index) {
    const words = [this.residency[index] === DISK ? "on disk" : `in ${TIER_NAMES[this.residency[index]]} memory`];
    if (this.pinned[index]) words.push("pinned");
    words.push(`${this.tokens[index].toLocaleString("en")} tokens`);
    const lately = Math.round(this.heat[index]);
    if (lately) words.push(`about ${lately.toLocaleString("en")} of them lately`);
    return `${this.name(index)}: ${words.join(", ")}`;
  }
}

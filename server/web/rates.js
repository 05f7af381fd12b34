/** Rates of the last seconds, from totals since the start of the server. */

const WINDOW_MS = 5000;

/**
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {object} Rates per second
 * @property {number} bytesRead
 * @property {number} stallShare share of the time that computation waited for experts, 0 to 1
 * @property {number} promptTokens
 * @property {number} generationTokens
 */

export class RateWindow {
  constructor() {
    /** @type {{at: number, totals: Totals}[]} */
    this.samples = [];
  }

  /**
   * @param {Totals} totals
   * @param {number} at milliseconds of a monotonic clock
   * @returns {Rates}
   */
  add(totals, at) {
    const { samples } = this;
    samples.push({ at, totals });
    while (samples.length > 2 && at - samples[1].at >= WINDOW_MS) samples.shift();
    const first = samples[0];
    const seconds = (at - first.at) / 1000;
    // Totals of a cluster fall when a replica is gone.
    /** @param {(totals: Totals) => number} of */
    const rate = (of) => (seconds > 0 ? Math.max(0, of(totals) - of(first.totals)) / seconds : 0);
    return {
      bytesRead: rate((each) => each.loaded_bytes),
      stallShare: Math.min(1, rate((each) => each.stall_seconds)),
      promptTokens: rate((each) => each.prompt_tokens),
      generationTokens: rate((each) => each.generation_tokens),
    };
  }
}

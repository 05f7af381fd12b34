/** The totals of the last minute, about one a second. */

const LENGTH_MS = 60_000;
const INTERVAL_MS = 1000;

/** @typedef {import("./experts.js").Totals} Totals */

export class History {
  constructor() {
    /** @type {{at: number, totals: Totals}[]} */
    this.samples = [];
  }

  /**
   * @param {Totals} totals
   * @param {number} at milliseconds of a monotonic clock
   */
  add(totals, at) {
    const { samples } = this;
    const last = samples.length - 1;
    // The latest sample is always the newest; replace it while it is less than an interval after the one before.
    if (last > 0 && at - samples[last - 1].at < INTERVAL_MS) samples[last] = { at, totals };
    else samples.push({ at, totals });
    while (samples.length > 1 && at - samples[1].at >= LENGTH_MS) samples.shift();
  }

  /** @returns {Totals | undefined} */
  get first() {
    return this.samples[0]?.totals;
  }

  /** @returns {Totals | undefined} */
  get latest() {
    return this.samples.at(-1)?.totals;
  }

  /** True once the samples span a minute. */
  get isFull() {
    const { samples } = this;
    return samples.length > 1 && samples[samples.length - 1].at - samples[0].at >= LENGTH_MS;
  }

  /** @param {(totals: Totals) => number} of a total since the start of the server */
  growth(of) {
    const { first, latest } = this;
    return first && latest ? of(latest) - of(first) : 0;
  }

  /** @param {(totals: Totals) => boolean} isTrue */
  everySample(isTrue) {
    return this.isFull && this.samples.every(({ totals }) => isTrue(totals));
  }
}

/** The server's history (`/v1/history`), which began before the page was opened. */

import { request } from "./api.js";

const POLL_INTERVAL_MS = 5000;
const NUM_KEPT = 720; // points; an hour
const NUM_DRAWN = 120; // points of a line; more would be narrower than a pixel

/** @typedef {(number | null)[]} Line values, the oldest first; null while unknown */

export class Lines {
  constructor() {
    /** @type {number[]} Unix times of the points */
    this.times = [];
    /** @type {Record<string, Line>} */
    this.series = {};
    this.intervalSeconds = POLL_INTERVAL_MS / 1000;
    this.nextAt = -Infinity;
    this.version = 0; // changes with the points; a reply to a request for others is dropped
  }

  /** Forget all, because the server may be another one. */
  clear() {
    this.times = [];
    this.series = {};
    this.nextAt = -Infinity;
    this.version += 1;
  }

  /** @param {number} now polls the server if the interval has passed */
  show(now) {
    if (now < this.nextAt) return;
    this.nextAt = now + POLL_INTERVAL_MS;
    void this.poll();
  }

  async poll() {
    const { version } = this;
    let found;
    try {
      found = await (await request(`/v1/history?after=${this.times.at(-1) ?? 0}`)).json();
    } catch {
      return; // the connection status reports a server that can't be reached; the lines go on when it answers
    }
    if (version === this.version) this.add(found);
  }

  /** @param {{interval_seconds: number | null, times: number[], series: Record<string, Line>}} found later points */
  add({ interval_seconds: interval, times, series }) {
    if (!times.length) return;
    this.intervalSeconds = interval ?? this.intervalSeconds;
    this.times = [...this.times, ...times].slice(-NUM_KEPT);
    for (const [name, values] of Object.entries(series)) {
      this.series[name] = [...(this.series[name] ?? []), ...values].slice(-NUM_KEPT);
    }
    this.version += 1;
  }

  /** @param {string} name of a line; returns its newest value */
  latest(name) {
    return this.series[name]?.at(-1) ?? null;
  }

  /**
   * @param {string} name
   * @param {number} seconds
   * @returns {number} sum of the last values
   */
  sum(name, seconds) {
    const values = (this.series[name] ?? []).slice(-Math.round(seconds / this.intervalSeconds));
    return values.reduce((/** @type {number} */ sum, value) => sum + (value ?? 0), 0);
  }

  /**
   * Return a line of the last seconds, each point the mean of as many as fit one pixel; null before the first point.
   *
   * @param {string} name
   * @param {number} seconds
   * @returns {Line}
   */
  line(name, seconds) {
    const length = Math.round(seconds / this.intervalSeconds);
    const values = (this.series[name] ?? []).slice(-length);
    const size = Math.max(1, Math.ceil(length / NUM_DRAWN));
    /** @type {Line} */
    const means = [];
    for (let end = values.length; end > 0; end -= size) means.unshift(mean(values.slice(Math.max(0, end - size), end)));
    return [...Array(Math.max(0, Math.ceil(length / size) - means.length)).fill(null), ...means];
  }
}

/**
 * @param {Line} values
 * @returns {number | null} mean of the known ones
 */
function mean(values) {
  const known = /** @type {number[]} */ (values.filter((value) => value !== null));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

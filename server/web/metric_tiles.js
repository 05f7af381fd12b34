/** The row of metric tiles above the heatmap, each with a sparkline of the last minute. */

import { make, write } from "./dom.js";
import { latency, percent, plural, rate, size } from "./format.js";
import { Sparkline } from "./sparkline.js";

/**
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {import("./history.js").History} History
 * @typedef {import("./rates.js").Rates} Rates
 * @typedef {object} Tile
 * @property {string} label
 * @property {string} tooltip
 * @property {(totals: Totals, rates: Rates, history: History) => string} value
 * @property {(totals: Totals, rates: Rates, history: History) => string} detail text below the value
 * @property {(totals: Totals, rates: Rates, history: History) => (number | null)[]} points next point of each line
 * @property {string[]} lines CSS class of each line
 * @property {number} [top] upper end of the scale
 */

const POINT_INTERVAL_MS = 1000;
const TEXT_INTERVAL_MS = 250; // readable, where updates come every 100 ms

/** @type {Tile[]} */
const TILES = [
  {
    label: "Hit ratio",
    tooltip: "Share of recent expert lookups that found the expert in memory. Optimal: the hit ratio of Belady's algorithm with the same memory, which knows the future but reads experts only on demand. Prefetched experts count as hits, so prefetching may exceed it.",
    value: (totals) => percent(totals.hit_ratio),
    detail: ({ hit_ratio: ratio, optimal_hit_ratio: optimal }) =>
      ratio !== null && optimal !== null && ratio > optimal
        ? `by prefetching; without it at best ${percent(optimal)}`
        : `optimal ${percent(optimal)}`,
    points: (totals) => [totals.hit_ratio, totals.optimal_hit_ratio],
    lines: ["", "optimal"],
    top: 1,
  },
  {
    label: "Read from disk",
    tooltip: "Expert bytes read from disk per second, mean of the last five seconds.",
    value: (_, rates) => `${size(rates.bytesRead)}/s`,
    detail: (totals) => `${size(totals.loaded_bytes)} total`,
    points: (_, rates) => [rates.bytesRead],
    lines: [""],
  },
  {
    label: "Stall share",
    tooltip: "Share of the last five seconds in which computation waited for experts.",
    value: (_, rates) => percent(rates.stallShare),
    detail: (totals) => `${totals.stall_seconds.toFixed(1)} s total`,
    points: (_, rates) => [rates.stallShare],
    lines: [""],
    top: 1,
  },
  {
    label: "Tokens/s",
    tooltip: "Generated tokens per second, and below it prompt tokens per second, mean of the last five seconds.",
    value: (_, rates) => rate(rates.generationTokens),
    detail: (_, rates) => `prompt ${rate(rates.promptTokens)}`,
    points: (_, rates) => [rates.generationTokens],
    lines: [""],
  },
  {
    label: "First token",
    tooltip: "Time from the arrival of a request to its first token, and below it from a token to the next: means of the last minute, or since the start if there were none in it.",
    value: (_, __, history) => latency(history.meanSeconds((totals) => totals.first_token)),
    detail: (_, __, history) => `${latency(history.meanSeconds((totals) => totals.inter_token))} per token`,
    points: (_, __, history) => [history.meanSeconds((totals) => totals.first_token)],
    lines: [""],
  },
  {
    label: "Requests",
    tooltip: "Sequences that are running, and sequences that wait in the queue. A request with n choices counts as n sequences.",
    value: (totals) => `${totals.num_requests_running} running`,
    detail: (totals) => `${totals.num_requests_waiting} waiting`,
    points: (totals) => [totals.num_requests_running + totals.num_requests_waiting],
    lines: [""],
  },
  {
    label: "KV cache",
    tooltip: "Share of KV cache blocks in use.",
    value: (totals) => percent(totals.kv_cache_usage),
    detail: (totals) => plural(totals.generation_tokens, "output token"),
    points: (totals) => [totals.kv_cache_usage],
    lines: [""],
    top: 1,
  },
];

export class MetricTiles {
  /** @param {HTMLElement} list a <dl> element */
  constructor(list) {
    this.tiles = TILES.map((tile) => {
      const value = make("dd", "value", "–");
      const detail = make("dd", "detail");
      const spark = new Sparkline(tile.lines);
      const box = make("div", "tile");
      box.title = tile.tooltip;
      const line = make("dd");
      line.append(spark.element);
      box.append(make("dt", "", tile.label), value, detail, line);
      list.append(box);
      return { tile, value, detail, spark };
    });
    this.textAt = -Infinity;
    this.pointAt = -Infinity;
  }

  /**
   * @param {Totals} totals
   * @param {Rates} rates
   * @param {History} history
   * @param {number} now
   */
  show(totals, rates, history, now) {
    const isTextDue = now - this.textAt >= TEXT_INTERVAL_MS;
    const isPointDue = now - this.pointAt >= POINT_INTERVAL_MS;
    for (const { tile, value, detail, spark } of this.tiles) {
      if (isTextDue) {
        write(value, tile.value(totals, rates, history));
        write(detail, tile.detail(totals, rates, history));
      }
      if (isPointDue) spark.add(tile.points(totals, rates, history), tile.top);
    }
    if (isTextDue) this.textAt = now;
    if (isPointDue) this.pointAt = now;
  }
}

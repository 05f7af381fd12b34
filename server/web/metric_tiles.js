/** The tiles of metrics above the heatmap, each with a line of the server's history. */

import { make, write } from "./dom.js";
import { compact, count, latency, percent, rate, size } from "./format.js";
import { Sparkline } from "./sparkline.js";

/**
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {import("./lines.js").Lines} Lines
 * @typedef {import("./rates.js").Rates} Rates
 * @typedef {object} Tile
 * @property {string} label
 * @property {string} tooltip
 * @property {(totals: Totals, rates: Rates, lines: Lines) => string} value
 * @property {(totals: Totals, rates: Rates, lines: Lines) => string} detail text below the value
 * @property {[string, string][]} lines names in the history, and CSS class of each
 * @property {boolean} [isSparse] draws nothing where a line is 0
 * @property {(lines: Lines) => boolean} [isBad] returns true to draw attention to it
 * @property {number} [top] upper end of the scale
 */

const ERROR_SECONDS = 60; // in which errors are counted
const TEXT_INTERVAL_MS = 250; // readable, where updates come every 100 ms

/** @type {Tile[]} */
const TILES = [
  {
    label: "Hit ratio",
    tooltip: "Share of recent expert lookups that found the expert in memory. Optimal: the hit ratio of Belady's algorithm with the same memory, which knows the future but reads experts only on demand. Prefetched experts count as hits, so prefetching may exceed it.",
    value: (totals) => percent(totals.hit_ratio),
    detail: ({ hit_ratio: ratio, optimal_hit_ratio: optimal }) =>
      ratio !== null && optimal !== null && ratio > optimal && percent(ratio) !== percent(optimal)
        ? `≤ ${percent(optimal)} without prefetch`
        : `optimal ${percent(optimal)}`,
    lines: [["hit_ratio", ""], ["optimal_hit_ratio", "optimal"]],
    top: 1,
  },
  {
    label: "Tokens/s",
    tooltip: "Generated tokens per second, and below it prompt tokens per second, mean of the last five seconds.",
    value: (_, rates) => rate(rates.generationTokens),
    detail: (_, rates) => `prompt ${rate(rates.promptTokens)}`,
    lines: [["generation_tokens_per_second", ""]],
  },
  latencyTile("First token", "Time from the arrival of a request to its first token", "first_token"),
  latencyTile("Time per token", "Time from a token of a request to its next", "inter_token"),
  {
    label: "Read from disk",
    tooltip: "Expert bytes read from disk per second, mean of the last five seconds.",
    value: (_, rates) => `${size(rates.bytesRead)}/s`,
    detail: (totals) => `${size(totals.loaded_bytes)} total`,
    lines: [["read_bytes_per_second", ""]],
  },
  {
    label: "Stall share",
    tooltip: "Share of the last five seconds in which computation waited for experts.",
    value: (_, rates) => percent(rates.stallShare),
    detail: (totals) => `${totals.stall_seconds.toFixed(1)} s total`,
    lines: [["stall_share", ""]],
    top: 1,
  },
  {
    label: "KV cache",
    tooltip: "Share of KV cache blocks in use.",
    value: (totals) => percent(totals.kv_cache_usage),
    detail: (totals) => `${compact(totals.generation_tokens)} output tokens`,
    lines: [["kv_cache_usage", ""]],
    top: 1,
  },
  {
    label: "Requests",
    tooltip: "Sequences that are running, and sequences that wait in the queue. A request with n choices counts as n sequences.",
    value: (totals) => `${totals.num_requests_running} running`,
    detail: (totals) => `${totals.num_requests_waiting} waiting`,
    lines: [["num_requests_running", ""], ["num_requests_waiting", "optimal"]],
  },
  {
    label: "Errors",
    tooltip: "Requests that failed in the last minute, with a status of 5xx or in their stream; below it those refused with 429, because they were too many, and with another 4xx, because they were wrong.",
    value: (_, __, lines) => count(lines.sum("num_errors", ERROR_SECONDS)),
    detail: (_, __, lines) => {
      const [limited, refused] = ["num_rate_limited", "num_client_errors"].map((name) => lines.sum(name, ERROR_SECONDS));
      return `429: ${compact(limited)} · other 4xx: ${compact(refused)}`;
    },
    lines: [["num_rate_limited", "optimal"], ["num_errors", "bad"]],
    isSparse: true,
    isBad: (lines) => lines.sum("num_errors", ERROR_SECONDS) > 0,
  },
];

export class MetricTiles {
  /**
   * @param {HTMLElement} list a <dl> element
   * @param {HTMLSelectElement} range of the lines in seconds
   */
  constructor(list, range) {
    this.range = range;
    this.tiles = TILES.map((tile) => {
      const value = make("dd", "value", "–");
      const detail = make("dd", "detail");
      const spark = new Sparkline(tile.lines.map(([, name]) => name));
      const box = make("div", "tile");
      box.title = tile.tooltip;
      const line = make("dd");
      line.append(spark.element);
      box.append(make("dt", "", tile.label), value, detail, line);
      list.append(box);
      return { tile, box, value, detail, spark };
    });
    this.textAt = -Infinity;
    this.drawn = "";
  }

  /**
   * @param {Totals} totals
   * @param {Rates} rates
   * @param {Lines} lines
   * @param {number} now
   */
  show(totals, rates, lines, now) {
    if (now - this.textAt < TEXT_INTERVAL_MS) return;
    this.textAt = now;
    for (const { tile, box, value, detail } of this.tiles) {
      write(value, tile.value(totals, rates, lines));
      write(detail, tile.detail(totals, rates, lines));
      box.classList.toggle("bad", tile.isBad?.(lines) ?? false);
    }
    const drawn = `${lines.version} ${this.range.value}`;
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const seconds = Number(this.range.value);
    for (const { tile, spark } of this.tiles) {
      const drawn = tile.lines.map(([name]) => lines.line(name, seconds));
      spark.draw(tile.isSparse ? drawn.map((line) => line.map((value) => value || null)) : drawn, tile.top);
    }
  }
}

/**
 * Return a tile of a latency: its median, and below it the tail.
 *
 * @param {string} label
 * @param {string} tooltip
 * @param {string} name of the lines of the history
 * @returns {Tile}
 */
function latencyTile(label, tooltip, name) {
  return {
    label,
    tooltip: `${tooltip}: p50, p95 and p99 of the last minute, which half, 95 % and 99 % of all do not exceed.`,
    value: (_, __, lines) => latency(lines.latest(`${name}_p50`)),
    detail: (_, __, lines) => `p95 ${latency(lines.latest(`${name}_p95`))} · p99 ${latency(lines.latest(`${name}_p99`))}`,
    lines: [[`${name}_p99`, "tail"], [`${name}_p95`, "optimal"], [`${name}_p50`, ""]],
  };
}

/** The row of numbers above the stage, each with what it was in the last minute. */

import { make, write } from "./dom.js";
import { percent, plural, rate, size } from "./format.js";
import { Sparkline } from "./sparkline.js";

/**
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {import("./rates.js").Rates} Rates
 * @typedef {object} Tile
 * @property {string} label
 * @property {string} about what it means
 * @property {(totals: Totals, rates: Rates) => string} value
 * @property {(totals: Totals, rates: Rates) => string} beside what stands below the value
 * @property {(totals: Totals, rates: Rates) => (number | null)[]} points of its lines
 * @property {string[]} lines
 * @property {number} [top] of their scale
 */

const SECOND = 1000; // between two points of a line
const READ = 250; // between two texts, for nobody reads ten a second

/** @type {Tile[]} */
const TILES = [
  {
    label: "Hit ratio",
    about: "Part of the last look-ups that found their expert in memory, and what replacement that knew the future would have had without prefetching.",
    value: (totals) => percent(totals.hit_ratio),
    beside: (totals) => `best on demand ${percent(totals.optimal_hit_ratio)}`,
    points: (totals) => [totals.hit_ratio, totals.optimal_hit_ratio],
    lines: ["", "best"],
    top: 1,
  },
  {
    label: "Read from disk",
    about: "Bytes of experts, mean of the last five seconds.",
    value: (_, rates) => `${size(rates.bytesRead)}/s`,
    beside: (totals) => `${size(totals.loaded_bytes)} in all`,
    points: (_, rates) => [rates.bytesRead],
    lines: [""],
  },
  {
    label: "Stalled",
    about: "Part of the last five seconds in which compute waited for experts.",
    value: (_, rates) => percent(rates.stallShare),
    beside: (totals) => `${totals.stall_seconds.toFixed(1)} s in all`,
    points: (_, rates) => [rates.stallShare],
    lines: [""],
    top: 1,
  },
  {
    label: "Tokens/s",
    about: "Written, and read of prompts, mean of the last five seconds.",
    value: (_, rates) => rate(rates.generationTokens),
    beside: (_, rates) => `prompts ${rate(rates.promptTokens)}`,
    points: (_, rates) => [rates.generationTokens],
    lines: [""],
  },
  {
    label: "Requests",
    about: "Choices of requests that run, and that wait for a place.",
    value: (totals) => `${totals.num_requests_running} running`,
    beside: (totals) => `${totals.num_requests_waiting} waiting`,
    points: (totals) => [totals.num_requests_running + totals.num_requests_waiting],
    lines: [""],
  },
  {
    label: "KV cache",
    about: "Part of its blocks that are in use.",
    value: (totals) => percent(totals.kv_cache_usage),
    beside: (totals) => plural(totals.generation_tokens, "token") + " written",
    points: (totals) => [totals.kv_cache_usage],
    lines: [""],
    top: 1,
  },
];

export class Numbers {
  /** @param {HTMLElement} list a dl */
  constructor(list) {
    this.tiles = TILES.map((tile) => {
      const value = make("dd", "value", "–");
      const beside = make("dd", "beside");
      const spark = new Sparkline(tile.lines);
      const box = make("div", "tile");
      box.title = tile.about;
      const line = make("dd");
      line.append(spark.element);
      box.append(make("dt", "", tile.label), value, beside, line);
      list.append(box);
      return { tile, value, beside, spark };
    });
    this.writtenAt = -Infinity;
    this.pointAt = -Infinity;
  }

  /**
   * @param {Totals} totals
   * @param {Rates} rates
   * @param {number} now
   */
  show(totals, rates, now) {
    const isWritten = now - this.writtenAt >= READ;
    const isPoint = now - this.pointAt >= SECOND;
    for (const { tile, value, beside, spark } of this.tiles) {
      if (isWritten) {
        write(value, tile.value(totals, rates));
        write(beside, tile.beside(totals, rates));
      }
      if (isPoint) spark.add(tile.points(totals, rates), tile.top);
    }
    if (isWritten) this.writtenAt = now;
    if (isPoint) this.pointAt = now;
  }
}

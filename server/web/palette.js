/** Colours of the canvases, which no style sheet reaches: the tier is the hue, traffic the strength. */

import { DEVICE, DISK, HOST } from "./experts.js";

export const NUM_SHADES = 32;
const WARM_TOKENS = 16; // so much traffic is strong, however little there is elsewhere
/** @type {Record<number, number>} by tier, in degrees */
const HUES = { [DISK]: 68, [HOST]: 252, [DEVICE]: 160 };
// Lightness and chroma (of OKLCH) of the coldest and of the warmest.
const DARK = { cold: [0.29, 0.028], warm: [0.86, 0.165] };
const LIGHT = { cold: [0.915, 0.028], warm: [0.56, 0.175] };

/**
 * @typedef {object} Palette
 * @property {string[]} shades by tier * NUM_SHADES + shade
 * @property {string} text
 * @property {string} quiet
 * @property {string} mark of what is pinned
 */

/**
 * @param {boolean} isDark
 * @returns {Palette}
 */
export function palette(isDark) {
  const { cold, warm } = isDark ? DARK : LIGHT;
  const shades = [DISK, HOST, DEVICE].flatMap((tier) =>
    Array.from({ length: NUM_SHADES }, (_, shade) => {
      const part = shade / (NUM_SHADES - 1);
      const [lightness, chroma] = cold.map((from, place) => from + (warm[place] - from) * part);
      // A tier must be told apart even when it is cold, and memory from disk most of all.
      const tint = tier === DISK ? 0 : 0.035 * (1 - part);
      const depth = tier === DISK ? 0 : (isDark ? 0.07 : -0.08) * (1 - part);
      return `oklch(${lightness + depth} ${chroma + tint} ${HUES[tier]})`;
    }),
  );
  return isDark
    ? { shades, text: "#e6eeea", quiet: "#93a69e", mark: "#ffffff" }
    : { shades, text: "#15201c", quiet: "#54645d", mark: "#10201a" };
}

/**
 * How strong so much warmth is beside the warmest.
 *
 * @param {number} warmest
 * @returns {(heat: number) => number} 0 to NUM_SHADES - 1
 */
export function shades(warmest) {
  const scale = (NUM_SHADES - 1) / Math.log1p(Math.max(warmest, WARM_TOKENS));
  return (heat) => Math.round(Math.log1p(heat) * scale);
}

/** Colours of the canvases, which style sheets cannot set: the hue shows the tier, the shade the traffic. */

import { DEVICE, DISK, HOST } from "./experts.js";

export const NUM_SHADES = 32;
const MIN_SCALE_TOKENS = 16; // least upper end of the colour scale, so that little traffic is not shown as much
/** @type {Record<number, number>} hue by tier, in degrees */
const HUES = { [DISK]: 75, [HOST]: 252, [DEVICE]: 160 };
// OKLCH lightness and chroma of the coldest and the warmest cell. Disk is nearly grey: reads from it are no alarm.
const DARK = { cold: [0.29, 0.028], warm: [0.86, 0.165] };
const DARK_DISK = { cold: [0.27, 0.012], warm: [0.66, 0.035] };
const LIGHT = { cold: [0.915, 0.028], warm: [0.56, 0.175] };
const LIGHT_DISK = { cold: [0.925, 0.012], warm: [0.6, 0.035] };

/**
 * @typedef {object} Palette
 * @property {string[]} shades indexed by tier * NUM_SHADES + shade
 * @property {string} text
 * @property {string} muted
 * @property {string} mark colour of the pin mark
 * @property {string} uneven load balance of a layer with dead or overloaded experts
 */

/**
 * @param {boolean} isDark
 * @returns {Palette}
 */
export function palette(isDark) {
  const [memory, onDisk] = isDark ? [DARK, DARK_DISK] : [LIGHT, LIGHT_DISK];
  const shades = [DISK, HOST, DEVICE].flatMap((tier) => {
    const { cold, warm } = tier === DISK ? onDisk : memory;
    return Array.from({ length: NUM_SHADES }, (_, shade) => {
      const part = shade / (NUM_SHADES - 1);
      const [lightness, chroma] = cold.map((from, place) => from + (warm[place] - from) * part);
      // Cold cells of different tiers must be distinguishable, above all memory from disk.
      const tint = tier === DISK ? 0 : 0.035 * (1 - part);
      const depth = tier === DISK ? 0 : (isDark ? 0.07 : -0.08) * (1 - part);
      return `oklch(${lightness + depth} ${chroma + tint} ${HUES[tier]})`;
    });
  });
  return isDark
    ? { shades, text: "#e6eeea", muted: "#93a69e", mark: "#ffffff", uneven: "oklch(0.76 0.13 70)" }
    : { shades, text: "#15201c", muted: "#54645d", mark: "#10201a", uneven: "oklch(0.66 0.14 65)" };
}

/**
 * Return a function from the heat of an expert to its shade, on a logarithmic scale.
 *
 * @param {number} maxHeat
 * @returns {(heat: number) => number} 0 to NUM_SHADES - 1
 */
export function shades(maxHeat) {
  const scale = (NUM_SHADES - 1) / Math.log1p(Math.max(maxHeat, MIN_SCALE_TOKENS));
  return (heat) => Math.round(Math.log1p(heat) * scale);
}

/** The hue of a token: tokens that went the same way look the same. */

/** @typedef {import("./chat_stream.js").Route} Route */

const GOLDEN_ANGLE = 137.508; // so that neighbours among the experts differ
const TURN = 360;

/**
 * @param {Route} route
 * @param {number | null} row of the layer whose first expert decides; null for the whole path
 * @returns {number} degrees
 */
export function hue(route, row) {
  if (row !== null) return ((route[row]?.[0] ?? 0) * GOLDEN_ANGLE) % TURN;
  // Every expert points into a direction of its own, and the path into their sum: similar paths, similar hues.
  let x = 0;
  let y = 0;
  route.forEach((experts, place) =>
    experts.forEach((expert, rank) => {
      const angle = direction(place, expert);
      x += Math.cos(angle) / (1 + rank);
      y += Math.sin(angle) / (1 + rank);
    }),
  );
  return ((Math.atan2(y, x) / Math.PI) * (TURN / 2) + TURN) % TURN;
}

/**
 * A direction that looks random and is always the same.
 *
 * @param {number} row
 * @param {number} expert
 * @returns {number} radians
 */
function direction(row, expert) {
  let bits = Math.imul(row + 1, 0x9e3779b1) ^ Math.imul(expert + 1, 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 15), 0x2c1b3c6d);
  bits ^= bits >>> 13;
  return ((bits >>> 0) / 2 ** 32) * 2 * Math.PI;
}

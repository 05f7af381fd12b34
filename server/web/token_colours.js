/** The hues of tokens by their experts: tokens with similar routes have similar hues. */

/** @typedef {import("./chat_stream.js").Route} Route */

const GOLDEN_ANGLE = 137.508; // neighbouring experts get distinct hues
const CIRCLE = 360; // degrees

/**
 * @param {Route} route
 * @param {number | null} row layer whose top expert sets the hue; null for all layers
 * @returns {number} degrees
 */
export function hue(route, row) {
  if (row !== null) return ((route[row]?.[0] ?? 0) * GOLDEN_ANGLE) % CIRCLE;
  // Each expert has a direction; the hue is the angle of their weighted sum, so similar routes get similar hues.
  let x = 0;
  let y = 0;
  route.forEach((experts, place) =>
    experts.forEach((expert, rank) => {
      const angle = direction(place, expert);
      x += Math.cos(angle) / (1 + rank);
      y += Math.sin(angle) / (1 + rank);
    }),
  );
  return ((Math.atan2(y, x) / Math.PI) * (CIRCLE / 2) + CIRCLE) % CIRCLE;
}

/**
 * Return a pseudorandom direction, the same on every call.
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

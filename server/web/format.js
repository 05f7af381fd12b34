/** Numbers as text, with no-break spaces (\u00a0) before units. 9.96 becomes 10, not 10.0. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** @param {number} bytes */
export function size(bytes) {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 9.95 && unit > 0 ? 1 : 0)}\u00a0${UNITS[unit]}`;
}

/** @param {number} value */
export function seconds(value) {
  if (value < 59.5) return `${value.toFixed(value < 9.95 ? 1 : 0)}\u00a0s`;
  return value < 3600 ? `${Math.floor(Math.round(value) / 60)}\u00a0min` : `${(value / 3600).toFixed(1)}\u00a0h`;
}

/** @param {number | null} value in seconds; null if unknown */
export function latency(value) {
  if (value === null) return "–";
  return value < 0.9995 ? `${(1000 * value).toFixed(value < 0.00995 ? 1 : 0)}\u00a0ms` : seconds(value);
}

/** @param {number} value */
export function count(value) {
  return value.toLocaleString("en");
}

/** @param {number} value in three digits, such as 646K, where there is little room */
export function compact(value) {
  return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
}

/** @param {number | null} share 0 to 1; null if unknown */
export function percent(share) {
  return share === null ? "–" : `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}\u00a0%`;
}

/** @param {number} value */
export function rate(value) {
  return value < 99.95 ? value.toFixed(1) : count(Math.round(value));
}

/**
 * @param {number} number
 * @param {string} noun
 */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

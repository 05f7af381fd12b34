/** A sparkline of the last minute. */

const NUM_POINTS = 60;
const NAMESPACE = "http://www.w3.org/2000/svg";

export class Sparkline {
  /** @param {string[]} classes CSS class of each line */
  constructor(classes) {
    this.element = document.createElementNS(NAMESPACE, "svg");
    this.element.setAttribute("class", "spark");
    this.element.setAttribute("viewBox", `0 0 ${NUM_POINTS - 1} 1`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.lines = classes.map((name) => {
      const path = document.createElementNS(NAMESPACE, "path");
      path.setAttribute("class", name);
      this.element.append(path);
      return { path, values: /** @type {(number | null)[]} */ ([]) };
    });
  }

  /**
   * @param {(number | null)[]} values next value of each line; null if unknown
   * @param {number} [top] upper end of the scale; defaults to the greatest value
   */
  add(values, top) {
    this.lines.forEach((line, place) => {
      line.values.push(values[place]);
      if (line.values.length > NUM_POINTS) line.values.shift();
    });
    const greatest = top ?? Math.max(1e-9, ...this.lines.flatMap((line) => line.values.map((value) => value ?? 0)));
    for (const { path, values: points } of this.lines) path.setAttribute("d", shape(points, greatest));
  }
}

/**
 * @param {(number | null)[]} values
 * @param {number} greatest
 */
function shape(values, greatest) {
  let isBroken = true;
  return values
    .map((value, place) => {
      if (value === null) {
        isBroken = true;
        return "";
      }
      const command = isBroken ? "M" : "L";
      isBroken = false;
      return `${command}${place + NUM_POINTS - values.length} ${(1 - value / greatest).toFixed(3)}`;
    })
    .join("");
}

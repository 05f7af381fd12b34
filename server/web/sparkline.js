/** A sparkline: one or more lines over the same time. */

const NAMESPACE = "http://www.w3.org/2000/svg";

export class Sparkline {
  /** @param {string[]} classes CSS class of each line */
  constructor(classes) {
    this.element = document.createElementNS(NAMESPACE, "svg");
    this.element.setAttribute("class", "spark");
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.paths = classes.map((name) => {
      const path = document.createElementNS(NAMESPACE, "path");
      path.setAttribute("class", name);
      this.element.append(path);
      return path;
    });
  }

  /**
   * @param {(number | null)[][]} lines values of each line, all as many; null if unknown
   * @param {number} [top] upper end of the scale; defaults to the greatest value
   */
  draw(lines, top) {
    const greatest = top ?? Math.max(1e-9, ...lines.flat().map((value) => value ?? 0));
    this.element.setAttribute("viewBox", `0 0 ${Math.max(1, lines[0].length - 1)} 1`);
    this.paths.forEach((path, place) => path.setAttribute("d", shape(lines[place], greatest)));
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
      const isAlone = command === "M" && (values[place + 1] ?? null) === null;
      const x = isAlone ? place - 0.5 : place; // a point between gaps is a short line
      return `${command}${x} ${(1 - Math.min(value, greatest) / greatest).toFixed(3)}${isAlone ? "h1" : ""}`;
    })
    .join("");
}

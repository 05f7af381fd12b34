/** The canvas with a cell for each expert, of which only those are drawn that look different than before. */

import { NUM_SHADES, shades } from "./palette.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {import("./geometry.js").Geometry} Geometry
 * @typedef {import("./palette.js").Palette} Palette
 */

const PINNED = 1 << 8;
const NEVER_DRAWN = 0xffff;

export class Cells {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.drawn = new Uint16Array(0); // how each cell looks: tier and shade, and whether it is pinned
  }

  /**
   * Begin with an empty canvas and its labels.
   *
   * @param {Geometry} geometry
   * @param {Palette} palette
   * @param {Experts} experts
   */
  reset(geometry, palette, experts) {
    this.geometry = geometry;
    this.palette = palette;
    this.drawn = new Uint16Array(experts.size).fill(NEVER_DRAWN);
    fit(this.canvas, geometry);
    const { context } = this;
    context.clearRect(0, 0, geometry.width, geometry.height);
    context.fillStyle = palette.quiet;
    context.font = `${10.5 * geometry.ratio}px system-ui, "DejaVu Sans", sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const everyRow = Math.ceil((14 * geometry.ratio) / geometry.pitchY);
    for (let row = 0; row < geometry.rows; row += everyRow) {
      const y = geometry.top + row * geometry.pitchY + geometry.cellHeight / 2;
      context.fillText(String(experts.layers[row]), geometry.left - 7 * geometry.ratio, y);
    }
    context.textAlign = "center";
    const wanted = Math.ceil((26 * geometry.ratio) / geometry.pitchX);
    const everyColumn = wanted <= 1 ? 1 : 2 ** Math.ceil(Math.log2(wanted));
    for (let column = 0; column < geometry.columns; column += everyColumn) {
      const x = geometry.left + column * geometry.pitchX + geometry.cellWidth / 2;
      context.fillText(String(column), x, geometry.top / 2);
    }
  }

  /**
   * @param {Experts} experts
   * @returns {number} how many cells looked different
   */
  draw(experts) {
    const { context, drawn, geometry, palette } = this;
    if (!geometry || !palette) return 0;
    const { cellWidth, cellHeight } = geometry;
    const shade = shades(experts.warmest);
    let count = 0;
    for (let index = 0; index < experts.size; index += 1) {
      if (!experts.exists(index)) continue;
      const colour = experts.residency[index] * NUM_SHADES + shade(experts.heat[index]);
      const look = colour | (experts.pinned[index] ? PINNED : 0);
      if (look === drawn[index]) continue;
      drawn[index] = look;
      count += 1;
      const x = geometry.x(index);
      const y = geometry.y(index);
      context.fillStyle = palette.shades[colour];
      context.fillRect(x, y, cellWidth, cellHeight);
      if (look & PINNED) this.pin(x, y, Math.max(3, Math.round(Math.min(cellWidth, cellHeight) / 2.4)));
    }
    return count;
  }

  /**
   * Fold a corner of a cell.
   *
   * @param {number} x
   * @param {number} y
   * @param {number} size
   */
  pin(x, y, size) {
    const { context } = this;
    context.fillStyle = this.palette?.mark ?? "";
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.fill();
  }
}

/**
 * Make a canvas as large as the geometry wants it.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Geometry} geometry
 */
export function fit(canvas, geometry) {
  canvas.width = geometry.width;
  canvas.height = geometry.height;
  canvas.style.width = `${geometry.width / geometry.ratio}px`;
  canvas.style.height = `${geometry.height / geometry.ratio}px`;
}

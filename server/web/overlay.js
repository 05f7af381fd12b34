/** What lies over the cells: the cursor, the chosen expert, and the path of a token. */

import { fit } from "./cells.js";

/**
 * @typedef {import("./geometry.js").Geometry} Geometry
 * @typedef {import("./palette.js").Palette} Palette
 * @typedef {object} Marks
 * @property {number} cursor index of a cell, -1 for none
 * @property {number} chosen the same
 * @property {number[][]} path of a token: by row, the experts that made it, best first; empty for none
 */

export class Overlay {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  /**
   * @param {Geometry} geometry
   * @param {Palette} palette
   */
  reset(geometry, palette) {
    this.geometry = geometry;
    this.palette = palette;
    fit(this.canvas, geometry);
  }

  /** @param {Marks} marks */
  draw({ cursor, chosen, path }) {
    const { context, geometry, palette } = this;
    if (!geometry || !palette) return;
    context.clearRect(0, 0, geometry.width, geometry.height);
    context.strokeStyle = palette.text;
    context.fillStyle = palette.text;
    this.trace(path);
    if (chosen >= 0) this.frame(chosen, 2.5);
    if (cursor >= 0) this.frame(cursor, 1.25);
  }

  /** @param {number[][]} path */
  trace(path) {
    const { context, geometry } = this;
    if (!geometry) return;
    const thin = geometry.ratio;
    let before = /** @type {[number, number] | null} */ (null);
    path.forEach((experts, row) => {
      experts.forEach((expert, rank) => {
        const [x, y] = this.centre(row * geometry.columns + expert);
        if (rank > 0) {
          this.frame(row * geometry.columns + expert, 1);
          return;
        }
        context.lineWidth = 1.75 * thin;
        if (before) {
          context.beginPath();
          context.moveTo(...before);
          context.lineTo(x, y);
          context.stroke();
        }
        before = [x, y];
        context.beginPath();
        context.arc(x, y, Math.max(2.5 * thin, geometry.cellHeight / 6), 0, 2 * Math.PI);
        context.fill();
      });
    });
  }

  /**
   * @param {number} index
   * @param {number} thickness in CSS pixels
   */
  frame(index, thickness) {
    const { context, geometry } = this;
    if (!geometry) return;
    const width = thickness * geometry.ratio;
    context.lineWidth = width;
    context.strokeRect(
      geometry.x(index) - width / 2,
      geometry.y(index) - width / 2,
      geometry.cellWidth + width,
      geometry.cellHeight + width,
    );
  }

  /**
   * @param {number} index
   * @returns {[number, number]}
   */
  centre(index) {
    const geometry = /** @type {Geometry} */ (this.geometry);
    return [geometry.x(index) + geometry.cellWidth / 2, geometry.y(index) + geometry.cellHeight / 2];
  }
}

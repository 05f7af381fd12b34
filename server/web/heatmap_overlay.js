/** The canvas above the cells: the cursor, the selected expert, and the route of a token. */

import { resize } from "./heatmap_canvas.js";

/**
 * @typedef {import("./heatmap_layout.js").HeatmapLayout} HeatmapLayout
 * @typedef {import("./palette.js").Palette} Palette
 * @typedef {object} Marks
 * @property {number} cursor index of a cell; -1 for none
 * @property {number} selected index of a cell; -1 for none
 * @property {number[][]} route of a token: by row, the experts chosen, highest router weight first; empty for none
 */

export class HeatmapOverlay {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  /**
   * @param {HeatmapLayout} layout
   * @param {Palette} palette
   */
  reset(layout, palette) {
    this.layout = layout;
    this.palette = palette;
    resize(this.canvas, layout);
  }

  /** @param {Marks} marks */
  draw({ cursor, selected, route }) {
    const { context, layout, palette } = this;
    if (!layout || !palette) return;
    context.clearRect(0, 0, layout.width, layout.height);
    context.strokeStyle = palette.text;
    context.fillStyle = palette.text;
    this.drawRoute(route);
    if (selected >= 0) this.outline(selected, 2.5);
    if (cursor >= 0) this.outline(cursor, 1.25);
  }

  /** @param {number[][]} route */
  drawRoute(route) {
    const { context, layout } = this;
    if (!layout) return;
    const thin = layout.ratio;
    let before = /** @type {[number, number] | null} */ (null);
    route.forEach((experts, row) => {
      experts.forEach((expert, rank) => {
        const [x, y] = this.centre(row * layout.columns + expert);
        if (rank > 0) {
          this.outline(row * layout.columns + expert, 1);
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
        context.arc(x, y, Math.max(2.5 * thin, layout.cellHeight / 6), 0, 2 * Math.PI);
        context.fill();
      });
    });
  }

  /**
   * @param {number} index
   * @param {number} thickness in CSS pixels
   */
  outline(index, thickness) {
    const { context, layout } = this;
    if (!layout) return;
    const width = thickness * layout.ratio;
    context.lineWidth = width;
    context.strokeRect(
      layout.x(index) - width / 2,
      layout.y(index) - width / 2,
      layout.cellWidth + width,
      layout.cellHeight + width,
    );
  }

  /**
   * @param {number} index
   * @returns {[number, number]}
   */
  centre(index) {
    const layout = /** @type {HeatmapLayout} */ (this.layout);
    return [layout.x(index) + layout.cellWidth / 2, layout.y(index) + layout.cellHeight / 2];
  }
}

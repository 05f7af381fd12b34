/** The canvas with one cell per expert; only cells whose look changed are redrawn. */

import { NUM_SHADES, shades } from "./palette.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {import("./heatmap_layout.js").HeatmapLayout} HeatmapLayout
 * @typedef {import("./palette.js").Palette} Palette
 */

const PINNED = 1 << 8;
const NEVER_DRAWN = 0xffff;

export class HeatmapCanvas {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.drawn = new Uint16Array(0); // look of each cell: tier, shade and pin
    /** @type {import("./experts.js").LayerBalance[] | null} */
    this.drawnBalance = null;
  }

  /**
   * Clear the canvas and draw the labels of rows and columns.
   *
   * @param {HeatmapLayout} layout
   * @param {Palette} palette
   * @param {Experts} experts
   */
  reset(layout, palette, experts) {
    this.layout = layout;
    this.palette = palette;
    this.drawn = new Uint16Array(experts.size).fill(NEVER_DRAWN);
    this.drawnBalance = null;
    resize(this.canvas, layout);
    const { context } = this;
    context.clearRect(0, 0, layout.width, layout.height);
    context.fillStyle = palette.muted;
    context.font = `${10.5 * layout.ratio}px system-ui, "DejaVu Sans", sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const everyRow = Math.ceil((14 * layout.ratio) / layout.pitchY);
    for (let row = 0; row < layout.rows; row += everyRow) {
      const y = layout.top + row * layout.pitchY + layout.cellHeight / 2;
      context.fillText(String(experts.layers[row]), layout.labels - 7 * layout.ratio, y);
    }
    context.textAlign = "center";
    const labelEvery = Math.ceil((26 * layout.ratio) / layout.pitchX);
    const everyColumn = labelEvery <= 1 ? 1 : 2 ** Math.ceil(Math.log2(labelEvery));
    for (let column = 0; column < layout.columns; column += everyColumn) {
      const x = layout.left + column * layout.pitchX + layout.cellWidth / 2;
      context.fillText(String(column), x, layout.top / 2);
    }
  }

  /**
   * @param {Experts} experts
   * @returns {number} number of cells drawn
   */
  draw(experts) {
    const { context, drawn, layout, palette } = this;
    if (!layout || !palette) return 0;
    if (experts.balance !== this.drawnBalance) this.drawBalance(experts, layout, palette);
    const { cellWidth, cellHeight } = layout;
    const shade = shades(experts.maxHeat);
    let count = 0;
    for (let index = 0; index < experts.size; index += 1) {
      if (!experts.exists(index)) continue;
      const colour = experts.residency[index] * NUM_SHADES + shade(experts.heat[index]);
      const look = colour | (experts.pinned[index] ? PINNED : 0);
      if (look === drawn[index]) continue;
      drawn[index] = look;
      count += 1;
      const x = layout.x(index);
      const y = layout.y(index);
      context.fillStyle = palette.shades[colour];
      context.fillRect(x, y, cellWidth, cellHeight);
      if (look & PINNED) this.drawPin(x, y, Math.max(3, Math.round(Math.min(cellWidth, cellHeight) / 2.4)));
    }
    return count;
  }

  /**
   * Draw a bar for each layer, as long as the logarithm of the tokens of its busiest expert over the mean.
   *
   * @param {Experts} experts
   * @param {HeatmapLayout} layout
   * @param {Palette} palette
   */
  drawBalance(experts, layout, palette) {
    const { context } = this;
    this.drawnBalance = experts.balance;
    context.clearRect(layout.labels, layout.top, layout.strip, layout.height - layout.top);
    experts.balance.forEach(({ max_over_mean: ratio, dead, overloaded }, row) => {
      const share = ratio > 1 ? Math.log(ratio) / Math.log(experts.sizes[row]) : 0;
      context.fillStyle = dead.length || overloaded.length ? palette.uneven : palette.muted;
      const width = Math.max(1, Math.round(share * layout.strip));
      context.fillRect(layout.labels, layout.top + row * layout.pitchY, width, layout.cellHeight);
    });
  }

  /**
   * Mark a cell as pinned, with a triangle in its corner.
   *
   * @param {number} x
   * @param {number} y
   * @param {number} size
   */
  drawPin(x, y, size) {
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
 * Resize a canvas to the layout.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {HeatmapLayout} layout
 */
export function resize(canvas, layout) {
  canvas.width = layout.width;
  canvas.height = layout.height;
  canvas.style.width = `${layout.width / layout.ratio}px`;
  canvas.style.height = `${layout.height / layout.ratio}px`;
}

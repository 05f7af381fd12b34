/** Positions of the heatmap's cells, in whole device pixels. */

// In CSS pixels.
const LEFT = 30; // layer numbers
const TOP = 16; // expert numbers
const MIN_WIDTH = 4; // cell with its gap
const MAX_WIDTH = 72;
const MAX_HEIGHT = 34;

export class HeatmapLayout {
  /**
   * @param {number} width available, in CSS pixels
   * @param {number} ratio device pixels per CSS pixel
   * @param {number} columns number of experts in the widest layer
   * @param {number} rows number of layers
   */
  constructor(width, ratio, columns, rows) {
    this.ratio = ratio;
    this.columns = columns;
    this.rows = rows;
    const available = ((width - LEFT) * ratio) / Math.max(1, columns);
    this.pitchX = Math.floor(Math.min(MAX_WIDTH * ratio, Math.max(MIN_WIDTH * ratio, available)));
    this.pitchY = Math.floor(Math.min(MAX_HEIGHT * ratio, this.pitchX));
    this.gap = Math.max(1, Math.round(Math.min(3 * ratio, this.pitchY / 9)));
    this.left = Math.round(LEFT * ratio);
    this.top = Math.round(TOP * ratio);
    this.width = this.left + columns * this.pitchX;
    this.height = this.top + rows * this.pitchY;
  }

  /** @param {number} index */
  x(index) {
    return this.left + (index % this.columns) * this.pitchX;
  }

  /** @param {number} index */
  y(index) {
    return this.top + Math.floor(index / this.columns) * this.pitchY;
  }

  /** Width of a cell without its gap. */
  get cellWidth() {
    return this.pitchX - this.gap;
  }

  get cellHeight() {
    return this.pitchY - this.gap;
  }

  /**
   * Return the cell at a position.
   *
   * @param {number} x CSS pixels from the canvas's top left corner
   * @param {number} y
   * @returns {number} index of the cell; -1 for none
   */
  at(x, y) {
    const column = Math.floor((x * this.ratio - this.left) / this.pitchX);
    const row = Math.floor((y * this.ratio - this.top) / this.pitchY);
    const isInside = column >= 0 && column < this.columns && row >= 0 && row < this.rows;
    return isInside ? row * this.columns + column : -1;
  }
}

/** Where the cells of the stage lie, in whole pixels of the screen. */

const LABELS = 30; // for the numbers of layers, at the left, in CSS pixels
const TOP = 16; // for the numbers of experts
const NARROWEST = 4;
const WIDEST = 72;
const TALLEST = 34;

export class Geometry {
  /**
   * @param {number} width that there is, in CSS pixels
   * @param {number} ratio pixels of the screen in one of CSS
   * @param {number} columns experts of the widest layer
   * @param {number} rows layers
   */
  constructor(width, ratio, columns, rows) {
    this.ratio = ratio;
    this.columns = columns;
    this.rows = rows;
    const room = ((width - LABELS) * ratio) / Math.max(1, columns);
    this.pitchX = Math.floor(Math.min(WIDEST * ratio, Math.max(NARROWEST * ratio, room)));
    this.pitchY = Math.floor(Math.min(TALLEST * ratio, this.pitchX));
    this.gap = Math.max(1, Math.round(Math.min(3 * ratio, this.pitchY / 9)));
    this.left = Math.round(LABELS * ratio);
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

  /** Of a cell without the gap behind it. */
  get cellWidth() {
    return this.pitchX - this.gap;
  }

  get cellHeight() {
    return this.pitchY - this.gap;
  }

  /**
   * The cell at a place.
   *
   * @param {number} x in CSS pixels from the canvas's corner
   * @param {number} y
   * @returns {number} its index; -1 if there is none
   */
  at(x, y) {
    const column = Math.floor((x * this.ratio - this.left) / this.pitchX);
    const row = Math.floor((y * this.ratio - this.top) / this.pitchY);
    const isInside = column >= 0 && column < this.columns && row >= 0 && row < this.rows;
    return isInside ? row * this.columns + column : -1;
  }
}

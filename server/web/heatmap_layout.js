/** Positions of the heatmap's cells, in whole device pixels. */

// In CSS pixels.
const LABELS = 30; // layer numbers
const STRIP = 18; // load balance of the layers
const LEFT = LABELS + STRIP + 4;
const TOP = 16; // expert numbers
const MIN_WIDTH = 3; // cell with its gap, if all columns fit
const SCROLLED_WIDTH = 6; // the same, if they do not fit and the heatmap scrolls sideways
const MAX_WIDTH = 72;
const MIN_HEIGHT = 4;
const LOW_HEIGHT = 6; // narrow cells are this high, not as low as they are narrow
const MAX_HEIGHT = 34;
const MAX_TOTAL_HEIGHT = 384; // of all rows, unless they would be lower than MIN_HEIGHT

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
    const pitch = available < MIN_WIDTH * ratio ? SCROLLED_WIDTH * ratio : available;
    this.pitchX = Math.floor(Math.min(MAX_WIDTH * ratio, pitch));
    const height = Math.max(MIN_HEIGHT, Math.min(MAX_HEIGHT, MAX_TOTAL_HEIGHT / Math.max(1, rows)));
    this.pitchY = Math.floor(Math.min(height * ratio, Math.max(LOW_HEIGHT * ratio, this.pitchX)));
    const isNarrow = this.pitchX < SCROLLED_WIDTH * ratio; // a gap would be a good part of the cell
    this.gap = isNarrow ? 0 : Math.max(1, Math.round(Math.min(3 * ratio, this.pitchY / 9)));
    this.labels = Math.round(LABELS * ratio);
    this.strip = Math.round(STRIP * ratio);
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
   * Return the columns that are in view.
   *
   * @param {number} scrolled CSS pixels to the left of the view
   * @param {number} width of the view in CSS pixels
   * @returns {[number, number]} the first and the last
   */
  columnsInView(scrolled, width) {
    const first = Math.ceil((scrolled * this.ratio - this.left) / this.pitchX);
    const last = Math.floor(((scrolled + width) * this.ratio - this.left) / this.pitchX) - 1;
    return [Math.max(0, first), Math.min(this.columns - 1, last)];
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

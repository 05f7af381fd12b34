/** Pointer and keyboard input on the heatmap. */

import { byId } from "./dom.js";

/**
 * @typedef {import("./heatmap.js").Heatmap} Heatmap
 * @typedef {object} Commands
 * @property {(index: number, isByKey: boolean) => void} select
 * @property {(action: "pin" | "prefetch" | "evict", index: number) => void} act
 * @property {() => void} clear
 */

const PAGE_ROWS = 8;
/** @type {Record<string, "pin" | "prefetch" | "evict">} */
const ACTIONS = { p: "pin", f: "prefetch", e: "evict" };

export class HeatmapInput {
  /**
   * @param {Heatmap} heatmap
   * @param {Commands} commands
   */
  constructor(heatmap, commands) {
    this.heatmap = heatmap;
    this.commands = commands;
    this.live = byId("cursor-live");
    const canvas = heatmap.overlay.canvas;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("click", (event) => {
      const index = this.cellUnder(event);
      if (index >= 0) commands.select(index, false);
    });
    heatmap.box.addEventListener("keydown", (event) => this.press(event));
  }

  /** @param {MouseEvent} event */
  cellUnder(event) {
    const index = this.heatmap.layout?.at(event.offsetX, event.offsetY) ?? -1;
    return this.heatmap.experts?.exists(index) ? index : -1;
  }

  /** @param {MouseEvent} event */
  point(event) {
    const index = this.cellUnder(event);
    if (index < 0 || index === this.heatmap.marks.cursor) return;
    this.heatmap.mark({ cursor: index });
    this.heatmap.describe(index);
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const { experts, marks } = this.heatmap;
    if (!experts || event.altKey || event.metaKey) return;
    if (event.key === "Escape") {
      this.commands.clear();
    } else if (event.key === "Enter" || event.key === " ") {
      if (marks.cursor >= 0) this.commands.select(marks.cursor, true);
    } else if (event.key in ACTIONS && !event.ctrlKey) {
      if (marks.cursor >= 0) this.commands.act(ACTIONS[event.key], marks.cursor);
    } else {
      const next = target(event, marks.cursor, experts);
      if (next < 0) return;
      this.move(next);
    }
    event.preventDefault();
  }

  /** @param {number} index */
  move(index) {
    const { experts } = this.heatmap;
    if (!experts?.exists(index)) return;
    this.heatmap.mark({ cursor: index });
    this.heatmap.scrollTo(index);
    this.heatmap.describe(index);
    this.live.textContent = experts.describe(index);
  }
}

/**
 * Return the cell that a key moves the cursor to.
 *
 * @param {KeyboardEvent} event
 * @param {number} cursor
 * @param {import("./experts.js").Experts} experts
 * @returns {number} index of the cell; -1 if the key does not move the cursor
 */
function target(event, cursor, experts) {
  const lastRow = experts.layers.length - 1;
  let row = cursor < 0 ? 0 : experts.row(cursor);
  let column = cursor < 0 ? 0 : experts.expert(cursor);
  const isFirst = cursor < 0;
  switch (event.key) {
    case "ArrowLeft": column -= isFirst ? 0 : 1; break;
    case "ArrowRight": column += isFirst ? 0 : 1; break;
    case "ArrowUp": row -= isFirst ? 0 : 1; break;
    case "ArrowDown": row += isFirst ? 0 : 1; break;
    case "PageUp": row -= PAGE_ROWS; break;
    case "PageDown": row += PAGE_ROWS; break;
    case "Home": column = 0; if (event.ctrlKey) row = 0; break;
    case "End": column = experts.width; if (event.ctrlKey) row = lastRow; break;
    default: return -1;
  }
  row = Math.min(lastRow, Math.max(0, row));
  column = Math.min(experts.sizes[row] - 1, Math.max(0, column));
  return row * experts.width + column;
}

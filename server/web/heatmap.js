/** The heatmap of experts: a canvas of cells, an overlay of marks, and their repainting. */

import { HeatmapCanvas } from "./heatmap_canvas.js";
import { byId, write } from "./dom.js";
import { count } from "./format.js";
import { HeatmapLayout } from "./heatmap_layout.js";
import { HeatmapOverlay } from "./heatmap_overlay.js";
import { palette } from "./palette.js";
import { isDark } from "./theme.js";

/** @typedef {import("./experts.js").Experts} Experts */

const COLD = 0.05; // heat in tokens below which fading is not visible
const REPAINT_MS = 30; // between repaints; heat fades over seconds, so every second frame is enough
const REDUCED_REPAINT_MS = 1000; // the same with reduced motion
const REDUCED_MOTION = matchMedia("(prefers-reduced-motion: reduce)");

export class Heatmap {
  constructor() {
    this.box = byId("heatmap");
    this.canvas = new HeatmapCanvas(/** @type {HTMLCanvasElement} */ (byId("heatmap-cells")));
    this.overlay = new HeatmapOverlay(/** @type {HTMLCanvasElement} */ (byId("heatmap-overlay")));
    this.empty = byId("heatmap-empty");
    this.view = byId("heatmap-view");
    this.marks = { cursor: -1, selected: -1, route: /** @type {number[][]} */ ([]) };
    /** @type {Experts | null} */
    this.experts = null;
    this.isScheduled = false;
    this.paintedAt = -Infinity;
    new ResizeObserver(() => this.rebuild()).observe(this.box);
    this.box.addEventListener("scroll", () => this.showView());
  }

  /** @param {Experts} experts the first snapshot of a connection, possibly of another server */
  show(experts) {
    const isSameShape = this.experts?.size === experts.size && this.experts.width === experts.width;
    this.experts = experts;
    this.empty.hidden = true;
    if (!isSameShape) this.marks = { cursor: -1, selected: -1, route: [] };
    const label = `Experts, ${experts.layers.length} layers of up to ${experts.width}`;
    this.box.setAttribute("aria-label", label);
    this.rebuild();
  }

  /** Redraw everything after the size or the colours changed. */
  rebuild() {
    const { experts } = this;
    if (!experts || this.box.clientWidth === 0) return;
    const ratio = Math.max(1, devicePixelRatio);
    const layout = new HeatmapLayout(this.box.clientWidth, ratio, experts.width, experts.layers.length);
    const colours = palette(isDark());
    this.layout = layout;
    this.canvas.reset(layout, colours, experts);
    this.overlay.reset(layout, colours);
    this.paintedAt = -Infinity;
    this.mark({});
    this.showView();
    this.refresh();
  }

  /** Tell which experts are in view if the heatmap is wider than the screen. */
  showView() {
    const { box, layout } = this;
    if (!layout) return;
    const [first, last] = layout.columnsInView(box.scrollLeft, box.clientWidth);
    const isWhole = first === 0 && last === layout.columns - 1;
    box.toggleAttribute("data-more-left", first > 0);
    box.toggleAttribute("data-more-right", last < layout.columns - 1);
    this.view.hidden = isWhole;
    write(this.view, `Experts ${first} to ${last} of ${count(layout.columns)}. Scroll the heatmap sideways for the others.`);
  }

  /** @param {Partial<Heatmap["marks"]>} change */
  mark(change) {
    Object.assign(this.marks, change);
    this.overlay.draw(this.marks);
  }

  /** Repaint in the next frame, and again for as long as any heat fades. */
  refresh() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame((now) => {
      this.isScheduled = false;
      if (this.experts && this.paint(this.experts, now) && !REDUCED_MOTION.matches) this.refresh();
    });
  }

  /**
   * @param {Experts} experts
   * @param {number} now
   * @returns {boolean} true while any heat is visible
   */
  paint(experts, now) {
    if (now - this.paintedAt < (REDUCED_MOTION.matches ? REDUCED_REPAINT_MS : REPAINT_MS)) return true;
    this.paintedAt = now;
    experts.fade(Math.max(now, experts.heatAt));
    this.canvas.draw(experts);
    return experts.maxHeat > COLD;
  }

  /** @param {number} index cell to scroll into view if the heatmap is wider than the screen */
  scrollTo(index) {
    const { box, layout } = this;
    if (!layout) return;
    const x = layout.x(index) / layout.ratio;
    const margin = (2 * layout.pitchX) / layout.ratio;
    const least = x + 2 * margin - box.clientWidth;
    box.scrollLeft = Math.max(least, Math.min(box.scrollLeft, x - margin));
  }

  /**
   * @param {boolean} isStale true if the data is from before the connection was lost
   * @param {string} reason
   */
  setStale(isStale, reason) {
    this.box.toggleAttribute("data-stale", isStale && this.experts !== null);
    if (isStale) write(this.empty, reason);
  }

  /** @param {number} index expert to describe below the heatmap */
  describe(index) {
    if (this.experts?.exists(index)) write(byId("cursor-text"), `${this.experts.describe(index)}.`);
  }
}

/** The stage: cells, what lies over them, and the frames in which they fade. */

import { Cells } from "./cells.js";
import { byId, write } from "./dom.js";
import { Geometry } from "./geometry.js";
import { Overlay } from "./overlay.js";
import { palette } from "./palette.js";
import { isDark } from "./theme.js";

/** @typedef {import("./experts.js").Experts} Experts */

const COLD = 0.05; // tokens, below which nobody sees it fade any more
const PICTURE_MS = 30; // between two pictures: what fades over seconds looks the same at every second frame
const CALM_MS = 1000; // the same for those who want little motion
const CALM = matchMedia("(prefers-reduced-motion: reduce)");

export class Stage {
  constructor() {
    this.box = byId("stage");
    this.cells = new Cells(/** @type {HTMLCanvasElement} */ (byId("cells")));
    this.overlay = new Overlay(/** @type {HTMLCanvasElement} */ (byId("overlay")));
    this.empty = byId("stage-empty");
    this.marks = { cursor: -1, chosen: -1, path: /** @type {number[][]} */ ([]) };
    /** @type {Experts | null} */
    this.experts = null;
    this.isAwaited = false;
    this.paintedAt = -Infinity;
    new ResizeObserver(() => this.rebuild()).observe(this.box);
  }

  /** @param {Experts} experts of a server that may be another than before */
  show(experts) {
    const isSameShape = this.experts?.size === experts.size && this.experts.width === experts.width;
    this.experts = experts;
    this.empty.hidden = true;
    if (!isSameShape) this.marks = { cursor: -1, chosen: -1, path: [] };
    const label = `Experts, ${experts.layers.length} layers of up to ${experts.width}`;
    this.box.setAttribute("aria-label", label);
    this.rebuild();
  }

  /** Draw everything anew: the size or the colours are others. */
  rebuild() {
    const { experts } = this;
    if (!experts || this.box.clientWidth === 0) return;
    const ratio = Math.max(1, devicePixelRatio);
    const geometry = new Geometry(this.box.clientWidth, ratio, experts.width, experts.layers.length);
    const colours = palette(isDark());
    this.geometry = geometry;
    this.cells.reset(geometry, colours, experts);
    this.overlay.reset(geometry, colours);
    this.paintedAt = -Infinity;
    this.mark({});
    this.refresh();
  }

  /** @param {Partial<Stage["marks"]>} change */
  mark(change) {
    Object.assign(this.marks, change);
    this.overlay.draw(this.marks);
  }

  /** Paint with the next frame, and go on for as long as something fades. */
  refresh() {
    if (this.isAwaited) return;
    this.isAwaited = true;
    requestAnimationFrame((now) => {
      this.isAwaited = false;
      if (this.experts && this.paint(this.experts, now) && !CALM.matches) this.refresh();
    });
  }

  /**
   * @param {Experts} experts
   * @param {number} now
   * @returns {boolean} whether something is warm
   */
  paint(experts, now) {
    if (now - this.paintedAt < (CALM.matches ? CALM_MS : PICTURE_MS)) return true;
    this.paintedAt = now;
    experts.fade(Math.max(now, experts.warmedAt));
    this.cells.draw(experts);
    return experts.warmest > COLD;
  }

  /** @param {number} index of a cell that is to be seen where the stage is wider than the screen */
  reveal(index) {
    const { box, geometry } = this;
    if (!geometry) return;
    const x = geometry.x(index) / geometry.ratio;
    const margin = (2 * geometry.pitchX) / geometry.ratio;
    const least = x + 2 * margin - box.clientWidth;
    box.scrollLeft = Math.max(least, Math.min(box.scrollLeft, x - margin));
  }

  /**
   * @param {boolean} isStale whether it shows what was, not what is
   * @param {string} reason
   */
  age(isStale, reason) {
    this.box.toggleAttribute("data-stale", isStale && this.experts !== null);
    if (isStale) write(this.empty, reason);
  }

  /** @param {number} index of the expert to tell of */
  tell(index) {
    if (this.experts?.exists(index)) write(byId("cursor-text"), `${this.experts.describe(index)}.`);
  }
}

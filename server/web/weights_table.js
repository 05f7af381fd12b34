/** The table of expert variants and adapters: a page of those that a search finds. */

import { byId, make, write } from "./dom.js";
import { count, size } from "./format.js";

/** @typedef {import("./weights.js").Row} Row */

const PAGE_ROWS = 20;
const RANKS = ["running", "loading"]; // states that are listed first

export class WeightsTable {
  /**
   * @param {(row: Row) => void} onUnload
   * @param {() => string} emptyText what to say while there are no rows
   */
  constructor(onUnload, emptyText) {
    this.onUnload = onUnload;
    this.emptyText = emptyText;
    this.box = byId("weights-box");
    this.body = byId("weights-body");
    this.note = byId("weights-note");
    this.search = /** @type {HTMLInputElement} */ (byId("weights-search"));
    this.pages = byId("weights-pages");
    this.previous = /** @type {HTMLButtonElement} */ (byId("weights-previous"));
    this.next = /** @type {HTMLButtonElement} */ (byId("weights-next"));
    /** @type {Row[]} */
    this.rows = [];
    this.page = 0;
    this.search.addEventListener("input", () => this.turnTo(0));
    this.previous.addEventListener("click", () => this.turnTo(this.page - 1));
    this.next.addEventListener("click", () => this.turnTo(this.page + 1));
  }

  /** @param {Row[]} rows all there are */
  show(rows) {
    this.rows = rows;
    this.turnTo(this.page);
  }

  clear() {
    this.rows = [];
    this.page = 0;
    this.body.replaceChildren();
    this.box.hidden = this.pages.hidden = true;
    byId("weights-search-field").hidden = true;
    write(this.note, "");
  }

  /** @param {number} page from 0; the last one if there are fewer */
  turnTo(page) {
    const found = this.found();
    const numPages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
    this.page = Math.min(page, numPages - 1);
    const first = this.page * PAGE_ROWS;
    const shown = found.slice(first, first + PAGE_ROWS);
    while (this.body.children.length > shown.length) this.body.lastElementChild?.remove();
    while (this.body.children.length < shown.length) this.body.append(this.tableRow());
    shown.forEach((row, place) => writeRow(/** @type {HTMLElement} */ (this.body.children[place]), row));
    this.box.hidden = !shown.length;
    this.pages.hidden = numPages < 2;
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page === numPages - 1;
    byId("weights-search-field").hidden = this.rows.length < 2 && !this.search.value;
    write(this.note, this.noteText(found.length, first, shown.length));
  }

  /** Return the rows that the search finds, those in use first. */
  found() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.rows.filter(({ model, kind, state }) => {
      const text = `${model} ${kind} ${state}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    return rows.sort(compare);
  }

  /**
   * @param {number} numFound
   * @param {number} first
   * @param {number} numShown
   */
  noteText(numFound, first, numShown) {
    if (!this.rows.length) return this.emptyText();
    if (!numFound) return `None of ${count(this.rows.length)} has this name or state.`;
    const of = numFound < this.rows.length ? `${count(numFound)} found of ${count(this.rows.length)}` : count(numFound);
    return numShown < this.rows.length ? `${count(first + 1)} to ${count(first + numShown)} of ${of}` : "";
  }

  tableRow() {
    const element = make("tr");
    for (let column = 0; column < 7; column += 1) {
      const cell = column ? make("td") : make("th");
      if (!column) cell.setAttribute("scope", "row");
      if (column === 1) cell.append(make("span", "state-dot"));
      cell.append(column === 6 ? this.unloadButton(element) : make("span"));
      if (!column) cell.append(" ", make("span", "kind"));
      element.append(cell);
    }
    return element;
  }

  /** @param {HTMLElement} element row of the button */
  unloadButton(element) {
    const button = make("button", "", "Unload");
    button.type = "button";
    button.addEventListener("click", () => {
      const row = this.rows.find((each) => each.model === element.dataset.model);
      if (row) this.onUnload(row);
    });
    return button;
  }
}

/**
 * Order rows by state, then by kind and name.
 *
 * @param {Row} one
 * @param {Row} other
 */
function compare(one, other) {
  const byKind = one.kind === other.kind ? 0 : one.kind === "variant" ? -1 : 1;
  return rank(one) - rank(other) || byKind || one.model.localeCompare(other.model, "en", { numeric: true });
}

/** @param {Row} row */
function rank({ state }) {
  const place = RANKS.indexOf(state);
  return place < 0 ? RANKS.length : place;
}

/**
 * @param {HTMLElement} element
 * @param {Row} row
 */
function writeRow(element, row) {
  element.dataset.model = row.model;
  const cells = /** @type {HTMLElement[]} */ ([...element.children]);
  cells[0].title = row.about;
  cells[1].firstElementChild?.setAttribute("data-state", row.state);
  write(/** @type {HTMLElement} */ (cells[0].lastElementChild), row.kind);
  write(/** @type {HTMLElement} */ (cells[0].firstElementChild), row.model);
  const texts = [row.state, row.tier, size(row.bytes), count(row.requests.total), count(row.tokens)];
  texts.forEach((text, place) => write(/** @type {HTMLElement} */ (cells[place + 1].lastElementChild), text));
  cells[6].firstElementChild?.setAttribute("aria-label", `Unload ${row.kind} ${row.model}`);
}

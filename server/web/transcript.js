/** Conversations as they are shown: questions, and answers made of tokens that may be chosen. */

import { byId, make } from "./dom.js";
import { hue } from "./token_colours.js";

/**
 * @typedef {import("./chat_stream.js").Piece} Piece
 * @typedef {import("./chat_stream.js").Route} Route
 * @typedef {{question: string, domain: string}} Turn whose domain is empty if none was given
 * @typedef {object} Token
 * @property {string} text
 * @property {Route[]} routes of the tokens of the model that wrote it, nearly always one
 * @property {number} turn
 * @property {HTMLElement} element
 */

export class Transcript {
  /**
   * @param {{onChoice: (token: Token | null) => void, onChange: () => void}} listener told of the token that was
   *   chosen, and when an answer is complete or all is gone
   */
  constructor(listener) {
    this.box = byId("transcript");
    this.listener = listener;
    /** @type {Token[]} */
    this.tokens = [];
    /** @type {Turn[]} */
    this.turns = [];
    this.current = -1;
    /** @type {number | null} */
    this.colourRow = null;
    /** @type {[number, number] | null} */
    this.filter = null; // row and expert
    /** @type {HTMLElement | null} */
    this.answer = null;
    this.box.addEventListener("click", (event) => this.click(event));
    this.box.addEventListener("keydown", (event) => this.press(event));
  }

  clear() {
    this.box.replaceChildren();
    this.tokens = [];
    this.turns = [];
    this.answer = null;
    this.choose(-1);
    this.listener.onChange();
  }

  /** What follows knows nothing of what was said before. */
  beginChat() {
    const last = this.box.lastElementChild;
    if (last?.classList.contains("turn")) this.box.append(make("p", "break", "A new chat"));
  }

  /**
   * @param {string} question
   * @param {string} domain empty for none
   */
  ask(question, domain) {
    this.turns.push({ question, domain });
    this.addTurn("You", domain).textContent = question;
    this.answer = this.addTurn("Model");
    this.box.scrollTop = this.box.scrollHeight;
  }

  /**
   * @param {string} who
   * @param {string} [domain]
   */
  addTurn(who, domain = "") {
    const turn = make("div", "turn");
    const said = make("div", "said");
    said.dir = "auto";
    const title = make("p", "who", who);
    if (domain) title.append(" ", make("span", "domain", domain));
    turn.append(title, said);
    this.box.append(turn);
    return said;
  }

  /** @param {Piece} piece of the answer to the last question */
  add({ text, routes, isReasoning }) {
    if (!this.answer) return;
    const element = make("span", isReasoning ? "token reasoning" : "token", text);
    element.dataset.index = String(this.tokens.length);
    const token = { text, routes, element, turn: this.turns.length - 1 };
    this.tokens.push(token);
    this.paint(token);
    this.sift(token);
    this.append(this.answer, element);
  }

  /**
   * Go along with what is added at the end, if the end is shown.
   *
   * @param {Element} parent
   * @param {Element} element
   */
  append(parent, element) {
    const isAtEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    parent.append(element);
    if (isAtEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  /** @param {string} cost of the last answer */
  close(cost) {
    const turn = this.answer?.parentElement;
    if (turn) this.append(turn, make("p", "cost", cost));
    this.answer = null;
    this.listener.onChange();
  }

  /** What was written is of another model than the one on the stage: its experts are none of these. */
  forgetRoutes() {
    for (const token of this.tokens) {
      token.routes = [];
      token.element.style.removeProperty("--hue");
      this.sift(token);
    }
    this.choose(-1);
    this.listener.onChange();
  }

  /** @param {number | null} row whose experts give tokens their colours; null for all */
  colourBy(row) {
    this.colourRow = row;
    this.tokens.forEach((token) => this.paint(token));
  }

  /** @param {Token} token */
  paint({ element, routes }) {
    if (routes.length) element.style.setProperty("--hue", hue(routes[0], this.colourRow).toFixed(1));
  }

  /**
   * Show which tokens an expert served.
   *
   * @param {[number, number] | null} place row and expert
   */
  show(place) {
    this.filter = place;
    this.box.classList.toggle("filtered", place !== null);
    this.tokens.forEach((token) => this.sift(token));
  }

  /** @param {Token} token */
  sift(token) {
    token.element.classList.toggle("served", this.filter !== null && isServed(token, ...this.filter));
  }

  /** @param {number} index -1 for none */
  choose(index) {
    this.tokens[this.current]?.element.classList.remove("current");
    this.current = index;
    const token = this.tokens[index] ?? null;
    token?.element.classList.add("current");
    this.listener.onChoice(token);
    token?.element.scrollIntoView({ block: "nearest" }); // in what room its path leaves
  }

  /** @param {MouseEvent} event */
  click(event) {
    const element = /** @type {HTMLElement} */ (event.target);
    if (element.dataset.index !== undefined) this.choose(Number(element.dataset.index));
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const last = this.tokens.length - 1;
    if (last < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const { current } = this;
    if (event.key === "ArrowRight") this.choose(Math.min(last, current + 1));
    else if (event.key === "ArrowLeft") this.choose(current < 0 ? last : Math.max(0, current - 1));
    else if (event.key === "Home") this.choose(0);
    else if (event.key === "End") this.choose(last);
    else if (event.key === "Escape") this.choose(-1);
    else return;
    event.preventDefault();
  }
}

/**
 * @param {Token} token
 * @param {number} row
 * @param {number} expert
 */
function isServed(token, row, expert) {
  return token.routes.some((route) => route[row]?.includes(expert));
}

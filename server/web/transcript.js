/** The transcript: user messages, and answers whose tokens can be selected. */

import { byId, make } from "./dom.js";
import { ModelColours } from "./model_colours.js";
import { hue } from "./token_colours.js";

/**
 * @typedef {import("./chat_stream.js").TextDelta} TextDelta
 * @typedef {import("./chat_stream.js").Route} Route
 * @typedef {import("./chat_stream.js").Weights} Weights
 * @typedef {{message: string, domain: string}} Turn a chat turn; the domain is empty if none was given
 * @typedef {object} Token
 * @property {string} text
 * @property {Route[]} routes one per model token of the text, nearly always one
 * @property {Weights[]} adapters one per model token of the text
 * @property {string} model adapter, variant or base model that wrote it
 * @property {number} turn index in `turns`
 * @property {HTMLElement} element
 */

export class Transcript {
  /**
   * @param {{onSelect: (token: Token | null) => void, onChange: () => void}} listener called with the selected token,
   *   and when an answer is complete or the transcript is cleared
   */
  constructor(listener) {
    this.box = byId("transcript");
    this.listener = listener;
    /** @type {Token[]} */
    this.tokens = [];
    /** @type {Turn[]} */
    this.turns = [];
    this.current = -1;
    /** @type {number | "model" | null} */
    this.colour = null;
    this.models = new ModelColours();
    /** @type {[number, number] | null} */
    this.filter = null; // row and expert
    /** @type {HTMLElement | null} */
    this.answerElement = null;
    this.box.addEventListener("click", (event) => this.onClick(event));
    this.box.addEventListener("keydown", (event) => this.onKeyDown(event));
    this.height = this.box.clientHeight; // when `keepAtEnd` ran last
    this.isAtEnd = true;
    this.box.addEventListener("scroll", () => (this.isAtEnd = isScrolledToEnd(this.box, this.height)));
    new ResizeObserver(() => this.keepAtEnd()).observe(this.box);
  }

  clear() {
    this.box.replaceChildren();
    this.tokens = [];
    this.turns = [];
    this.models.clear();
    this.answerElement = null;
    this.select(-1);
    this.listener.onChange();
  }

  /** Mark the start of a new chat, which does not include earlier messages. */
  startChat() {
    const last = this.box.lastElementChild;
    if (last?.classList.contains("turn")) this.box.append(make("p", "separator", "New chat"));
  }

  /**
   * @param {string} message
   * @param {string} domain empty for none
   */
  addMessage(message, domain) {
    this.turns.push({ message, domain });
    this.addTurn("You", domain).textContent = message;
    this.answerElement = this.addTurn("Model");
    this.box.scrollTop = this.box.scrollHeight;
  }

  /**
   * @param {string} role
   * @param {string} [domain]
   */
  addTurn(role, domain = "") {
    const turn = make("div", "turn");
    const content = make("div", "content");
    content.dir = "auto";
    const title = make("p", "role", role);
    if (domain) title.append(" ", make("span", "domain", domain));
    turn.append(title, content);
    this.box.append(turn);
    return content;
  }

  /** @param {TextDelta} delta next part of the current answer */
  add({ text, routes, adapters, isReasoning, model }) {
    if (!this.answerElement) return;
    const element = make("span", isReasoning ? "token reasoning" : "token", text);
    element.dataset.index = String(this.tokens.length);
    const token = { text, routes, adapters, element, model, turn: this.turns.length - 1 };
    this.tokens.push(token);
    this.models.add(token);
    this.writeModel(this.answerElement, model);
    this.paint(token);
    this.updateMatch(token);
    this.append(this.answerElement, element);
  }

  /**
   * Write beside the role of an answer which model wrote it.
   *
   * @param {HTMLElement} answer
   * @param {string} model
   */
  writeModel(answer, model) {
    const role = answer.parentElement?.firstElementChild;
    if (!role || role.childElementCount) return;
    const name = make("span", "model-name", model);
    name.style.setProperty("--tint", this.models.colour(model));
    role.append(" ", name);
  }

  /**
   * Write below the role of the current answer what a router chose for it, and why.
   *
   * @param {import("./chat_stream.js").Choice} choice
   */
  addReason({ model, reason }) {
    this.answerElement?.before(make("p", "reason", `Routing: ${model}. ${reason}`));
  }

  /** @param {Element} element a part of the current answer */
  addElement(element) {
    if (this.answerElement) this.append(this.answerElement, element);
  }

  /**
   * Append an element, and scroll to the end if the end was visible.
   *
   * @param {Element} parent
   * @param {Element} element
   */
  append(parent, element) {
    const isAtEnd = isScrolledToEnd(this.box, this.box.clientHeight);
    parent.append(element);
    if (isAtEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  /** After the size of the box changed, show the end if that was visible before. */
  keepAtEnd() {
    const { box } = this;
    if (this.isAtEnd && this.current < 0) box.scrollTop = box.scrollHeight;
    this.height = box.clientHeight;
    this.isAtEnd = isScrolledToEnd(box, this.height);
  }

  /** @param {string} cost text below the answer that ends */
  endAnswer(cost) {
    const turn = this.answerElement?.parentElement;
    if (turn) this.append(turn, make("p", "cost", cost));
    this.models.showLegend();
    this.answerElement = null;
    this.listener.onChange();
  }

  /** Remove the routes of all tokens, because they belong to another model than the heatmap. */
  clearRoutes() {
    for (const token of this.tokens) {
      token.routes = [];
      this.paint(token);
      this.updateMatch(token);
    }
    this.select(-1);
    this.listener.onChange();
  }

  /** @param {number | "model" | null} colour a layer whose experts colour the tokens, the model, or null for all layers */
  colourBy(colour) {
    this.colour = colour;
    this.box.classList.toggle("by-model", colour === "model");
    this.models.legend.hidden = colour !== "model";
    this.tokens.forEach((token) => this.paint(token));
  }

  /** @param {Token} token */
  paint(token) {
    const { element, routes } = token;
    if (this.colour === "model") {
      this.models.paint(token);
      return;
    }
    element.removeAttribute("title");
    if (routes.length) element.style.setProperty("--hue", hue(routes[0], this.colour).toFixed(1));
    else element.style.removeProperty("--hue");
  }

  /**
   * Highlight the tokens that were routed to an expert.
   *
   * @param {[number, number] | null} place row and expert; null for no highlight
   */
  filterBy(place) {
    this.filter = place;
    this.box.classList.toggle("filtered", place !== null);
    this.tokens.forEach((token) => this.updateMatch(token));
  }

  /** @param {Token} token */
  updateMatch(token) {
    token.element.classList.toggle("matching", this.filter !== null && isRoutedTo(token, ...this.filter));
  }

  /** @param {number} index -1 for none */
  select(index) {
    this.tokens[this.current]?.element.classList.remove("current");
    this.current = index;
    const token = this.tokens[index] ?? null;
    token?.element.classList.add("current");
    this.listener.onSelect(token);
    token?.element.scrollIntoView({ block: "nearest" }); // after the list of experts took its space
  }

  /** @param {MouseEvent} event */
  onClick(event) {
    const element = /** @type {HTMLElement} */ (event.target);
    if (element.dataset.index !== undefined) this.select(Number(element.dataset.index));
  }

  /** @param {KeyboardEvent} event */
  onKeyDown(event) {
    const last = this.tokens.length - 1;
    if (last < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const { current } = this;
    if (event.key === "ArrowRight") this.select(Math.min(last, current + 1));
    else if (event.key === "ArrowLeft") this.select(current < 0 ? last : Math.max(0, current - 1));
    else if (event.key === "Home") this.select(0);
    else if (event.key === "End") this.select(last);
    else if (event.key === "Escape") this.select(-1);
    else return;
    event.preventDefault();
  }
}

/**
 * @param {Token} token
 * @param {number} row
 * @param {number} expert
 */
function isRoutedTo(token, row, expert) {
  return token.routes.some((route) => route[row]?.includes(expert));
}

/**
 * @param {HTMLElement} box
 * @param {number} height of its visible part
 */
function isScrolledToEnd(box, height) {
  return box.scrollHeight - box.scrollTop - height < 40;
}

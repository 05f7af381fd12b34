/** Helpers for page elements. Text is set as text, never as markup. */

/**
 * @template {HTMLElement} [E=HTMLElement]
 * @param {string} id
 * @returns {E}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no #${id}`);
  return /** @type {E} */ (element);
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {string} [className]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[T]}
 */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/**
 * Set the text of an element, only if it changed.
 *
 * @param {HTMLElement} element
 * @param {string} text
 */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Show the result of an action, which screen readers announce.
 *
 * @param {HTMLElement} element with the role "status"
 * @param {string} text
 * @param {boolean} [isBad]
 */
export function report(element, text, isBad = false) {
  element.classList.toggle("bad", isBad);
  element.textContent = text;
}

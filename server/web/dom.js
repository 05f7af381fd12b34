/** Elements of the page by their ids, and new ones. Text is set as text: what a server says is never markup. */

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
 * Set a text, and touch the page only if it is another one.
 *
 * @param {HTMLElement} element
 * @param {string} text
 */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Say how something went, where screen readers hear of it.
 *
 * @param {HTMLElement} element of the role "status"
 * @param {string} text
 * @param {boolean} [isBad]
 */
export function report(element, text, isBad = false) {
  element.classList.toggle("bad", isBad);
  element.textContent = text;
}

/** Which domains and tokens of the conversations an expert served. */

import { byId, make } from "./dom.js";
import { count, percent, plural } from "./format.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {import("./transcript.js").Token} Token
 * @typedef {import("./transcript.js").Transcript} Transcript
 * @typedef {object} Domain of some turns
 * @property {string} name empty for turns that were given none
 * @property {number} total tokens of the model's answers
 * @property {number} served of these, the ones that the expert made
 * @property {Map<string, Token[]>} tokens that it served, by their text
 */

const MAX_TEXTS = 40; // of one domain, each of which is a button

/**
 * Show what an expert did in the answers that are on the page, domain by domain.
 *
 * @param {Transcript} transcript
 * @param {Experts} experts
 * @param {number} index of the expert; -1 for none
 */
export function showServed(transcript, experts, index) {
  if (index < 0) {
    transcript.show(null);
    return;
  }
  const [row, expert] = [experts.row(index), experts.expert(index)];
  const { domains, even } = tally(transcript, row, expert, experts.sizes[row]);
  transcript.show(transcript.tokens.length ? [row, expert] : null);
  const most = Math.max(even, ...domains.map(share));
  const list = make("ul", "domains");
  list.append(...domains.map((domain) => item(transcript, domain, share(domain) / most, even / most)));
  const hint = domains.length
    ? `Of each domain's answers, the part that came here. The mark is an even share, ${percent(even)}.`
    : "Nothing has been said yet. Ask the model something in the playground; the examples have a domain each.";
  byId("served").replaceChildren(make("p", "hint", hint), list);
}

/**
 * @param {Transcript} transcript
 * @param {number} row
 * @param {number} expert
 * @param {number} size experts of the layer
 * @returns {{domains: Domain[], even: number}} those most served first, and the share that each expert of the layer
 *   would have if all had the same
 */
function tally(transcript, row, expert, size) {
  /** @type {Map<string, Domain>} */
  const domains = new Map();
  let tokens = 0;
  let choices = 0;
  for (const token of transcript.tokens) {
    const name = transcript.turns[token.turn].domain;
    const domain = domains.get(name) ?? { name, total: 0, served: 0, tokens: new Map() };
    const served = token.routes.filter((route) => route[row]?.includes(expert)).length;
    domains.set(name, domain);
    domain.total += token.routes.length;
    domain.served += served;
    if (served) {
      const alike = domain.tokens.get(token.text);
      if (alike) alike.push(token);
      else domain.tokens.set(token.text, [token]);
    }
    tokens += token.routes.length;
    choices += token.routes.reduce((sum, route) => sum + (route[row]?.length ?? 0), 0);
  }
  const told = [...domains.values()].filter((domain) => domain.total);
  return { domains: told.sort((one, other) => share(other) - share(one)), even: tokens ? choices / tokens / size : 0 };
}

/** @param {Domain} domain */
function share({ served, total }) {
  return served / total;
}

/**
 * @param {Transcript} transcript
 * @param {Domain} domain
 * @param {number} part of the width that its bar takes
 * @param {number} mark where an even share is
 */
function item(transcript, domain, part, mark) {
  const title = make("p", "domain-title");
  const amount = `${count(domain.served)} of ${plural(domain.total, "token")}, ${percent(share(domain))}`;
  title.append(make("span", domain.name ? "" : "unnamed", domain.name || "no domain"), make("span", "amount", amount));
  const bar = make("div", "share");
  bar.append(make("div", "part"), make("div", "even"));
  bar.setAttribute("aria-hidden", "true");
  /** @type {HTMLElement} */ (bar.children[0]).style.width = `${100 * part}%`;
  /** @type {HTMLElement} */ (bar.children[1]).style.left = `${100 * mark}%`;
  const often = [...domain.tokens].sort(([, one], [, other]) => other.length - one.length);
  const buttons = make("div", "texts");
  buttons.append(...often.slice(0, MAX_TEXTS).map(([text, tokens]) => button(transcript, text, tokens)));
  if (often.length > MAX_TEXTS) buttons.append(` and ${count(often.length - MAX_TEXTS)} more`);
  const element = make("li");
  element.append(title, bar, buttons);
  return element;
}

/**
 * One that leads to each of some tokens with the same text in turn.
 *
 * @param {Transcript} transcript
 * @param {string} text
 * @param {Token[]} tokens
 */
function button(transcript, text, tokens) {
  const element = make("button");
  element.type = "button";
  element.append(make("bdi", "", text.trim() || JSON.stringify(text)));
  if (tokens.length > 1) element.append(make("span", "times", ` ×${tokens.length}`));
  let next = 0;
  element.addEventListener("click", () => {
    transcript.choose(transcript.tokens.indexOf(tokens[next % tokens.length]));
    next += 1;
  });
  return element;
}

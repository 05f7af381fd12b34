/** The domains and tokens of the conversations that were routed to an expert. */

import { byId, make } from "./dom.js";
import { count, percent, plural } from "./format.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {import("./transcript.js").Token} Token
 * @typedef {import("./transcript.js").Transcript} Transcript
 * @typedef {object} Domain
 * @property {string} name empty for chat turns without a domain
 * @property {number} total tokens generated in this domain
 * @property {number} routed number of these tokens that were routed to the expert
 * @property {Map<string, Token[]>} tokens routed to the expert, by text
 */

const MAX_BUTTONS = 40; // per domain, one per token text
const NO_ANSWERS = "No answers yet. Send a message in the playground, or run the examples, one per domain.";

/**
 * Show the share of each domain's tokens that was routed to an expert.
 *
 * @param {Transcript} transcript
 * @param {Experts} experts
 * @param {number} index expert; -1 for none
 */
export function showDomains(transcript, experts, index) {
  if (index < 0) {
    transcript.filterBy(null);
    return;
  }
  const [row, expert] = [experts.row(index), experts.expert(index)];
  const size = experts.sizes[row];
  const { domains, choices } = tally(transcript, row, expert);
  transcript.filterBy(transcript.tokens.length ? [row, expert] : null);
  const list = make("ul", "domains");
  list.append(...domains.map((domain) => item(transcript, domain, choices / size)));
  const hint = domains.length ? explanation(choices, size) : NO_ANSWERS;
  byId("expert-domains").replaceChildren(make("p", "hint", hint), list);
}

/**
 * Explain the bars, and why the shares of tokens here exceed the share of choices among the facts.
 *
 * @param {number} choices of experts that a token makes in the layer, on average
 * @param {number} size number of experts in the layer
 */
function explanation(choices, size) {
  const number = count(Number(choices.toFixed(1)));
  const times = number === "1" ? "" : `, so a share of tokens is ${number} times a share of choices`;
  return (
    "Share of each domain's generated tokens that chose this expert. " +
    `A token chooses ${number} of the layer's ${plural(size, "expert")}${times}. ` +
    `The marker shows a uniform share, ${percent(choices / size)}.`
  );
}

/**
 * @param {Transcript} transcript
 * @param {number} row
 * @param {number} expert
 * @returns {{domains: Domain[], choices: number}} domains by descending share, and the experts of the layer that a
 *   token chose on average
 */
function tally(transcript, row, expert) {
  /** @type {Map<string, Domain>} */
  const domains = new Map();
  let tokens = 0;
  let choices = 0;
  for (const token of transcript.tokens) {
    const name = transcript.turns[token.turn].domain;
    const domain = domains.get(name) ?? { name, total: 0, routed: 0, tokens: new Map() };
    const routed = token.routes.filter((route) => route[row]?.includes(expert)).length;
    domains.set(name, domain);
    domain.total += token.routes.length;
    domain.routed += routed;
    if (routed) {
      const same = domain.tokens.get(token.text);
      if (same) same.push(token);
      else domain.tokens.set(token.text, [token]);
    }
    tokens += token.routes.length;
    choices += token.routes.reduce((sum, route) => sum + (route[row]?.length ?? 0), 0);
  }
  const answered = [...domains.values()].filter((domain) => domain.total);
  return { domains: answered.sort((one, other) => share(other) - share(one)), choices: tokens ? choices / tokens : 0 };
}

/** @param {Domain} domain */
function share({ routed, total }) {
  return routed / total;
}

/**
 * @param {Transcript} transcript
 * @param {Domain} domain
 * @param {number} uniform share of each expert if tokens chose evenly, which a marker shows
 */
function item(transcript, domain, uniform) {
  const title = make("p", "domain-title");
  const amount = `${count(domain.routed)} of ${plural(domain.total, "token")}, ${percent(share(domain))}`;
  title.append(make("span", domain.name ? "" : "unnamed", domain.name || "no domain"), make("span", "amount", amount));
  const bar = make("div", "share");
  bar.append(make("div", "part"), make("div", "uniform"));
  bar.setAttribute("aria-hidden", "true");
  /** @type {HTMLElement} */ (bar.children[0]).style.width = `${100 * share(domain)}%`;
  /** @type {HTMLElement} */ (bar.children[1]).style.left = `${100 * uniform}%`;
  const byFrequency = [...domain.tokens].sort(([, one], [, other]) => other.length - one.length);
  const buttons = make("div", "texts");
  buttons.append(...byFrequency.slice(0, MAX_BUTTONS).map(([text, tokens]) => button(transcript, text, tokens)));
  if (byFrequency.length > MAX_BUTTONS) buttons.append(` and ${count(byFrequency.length - MAX_BUTTONS)} more`);
  const element = make("li");
  element.append(title, bar, buttons);
  return element;
}

/**
 * Return a button that selects the tokens of one text, one after the other.
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
    transcript.select(transcript.tokens.indexOf(tokens[next % tokens.length]));
    next += 1;
  });
  return element;
}

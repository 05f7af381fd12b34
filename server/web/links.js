/** What leads from a token to its experts, and from an expert to its tokens. */

import { byId, make, write } from "./dom.js";
import { plural } from "./format.js";
import { pathItems } from "./playground.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {import("./stage.js").Stage} Stage
 * @typedef {import("./transcript.js").Token} Token
 * @typedef {import("./transcript.js").Transcript} Transcript
 */

const MAX_SHOWN = 60; // tokens of one turn, each of which is a button
const MAX_QUESTION = 60; // letters

/**
 * Show the path of a token through the layers, on the stage and in words.
 *
 * @param {Token | null} token
 * @param {Stage} stage
 */
export function showPath(token, stage) {
  const { experts } = stage;
  const facts = byId("token-facts");
  facts.hidden = token === null;
  if (!token || !experts) {
    stage.mark({ path: [] });
    return;
  }
  const route = token.routes[0] ?? [];
  const fits = route.length === experts.layers.length;
  stage.mark({ path: fits ? route : [] });
  const title = `Token ${JSON.stringify(token.text)} by layer, best expert first`;
  write(byId("token-title"), fits ? title : `${title} (not of the layers on the stage)`);
  byId("token-path").replaceChildren(...pathItems(route, fits ? experts.layers : []));
  byId("cursor-live").textContent = `Token ${token.text}`;
}

/**
 * Show the tokens of the conversation that an expert served, turn by turn.
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
  const tokens = transcript.servedBy(row, expert);
  transcript.show(transcript.tokens.length ? [row, expert] : null);
  byId("served").replaceChildren(...turns(transcript, tokens));
}

/**
 * @param {Transcript} transcript
 * @param {Token[]} tokens
 */
function turns(transcript, tokens) {
  if (!tokens.length) {
    return [make("p", "hint", transcript.tokens.length ? "None of its tokens." : "Nothing has been said yet.")];
  }
  return transcript.questions.flatMap((question, turn) => {
    const served = tokens.filter((token) => token.turn === turn);
    if (!served.length) return [];
    const box = make("div", "served-turn");
    const total = transcript.tokens.filter((token) => token.turn === turn).length;
    const title = make("p", "question", `“${shorten(question)}” · ${served.length} of ${plural(total, "token")}`);
    box.append(title, ...served.slice(0, MAX_SHOWN).map((token) => button(transcript, token)));
    return [box];
  });
}

/**
 * @param {Transcript} transcript
 * @param {Token} token
 */
function button(transcript, token) {
  const element = make("button", "", token.text.trim() || JSON.stringify(token.text));
  element.type = "button";
  element.addEventListener("click", () => transcript.choose(transcript.tokens.indexOf(token)));
  return element;
}

/** @param {string} question */
function shorten(question) {
  return question.length > MAX_QUESTION ? `${question.slice(0, MAX_QUESTION)}…` : question;
}

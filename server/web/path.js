/** The way of a token through the layers. */

import { byId, make, write } from "./dom.js";

/**
 * @typedef {import("./stage.js").Stage} Stage
 * @typedef {import("./transcript.js").Token} Token
 */

const MAX_SPOKEN = 12; // layers of a path for screen readers, which find all of it in the list

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
  byId("token-path").replaceChildren(...steps(route, fits ? experts.layers : []));
  const best = route.slice(0, MAX_SPOKEN).map((experts) => experts[0]);
  byId("cursor-live").textContent = `Token ${token.text}, best experts from the first layer on: ${best.join(", ")}`;
}

/**
 * The path in words, a list item for each layer.
 *
 * @param {import("./chat_stream.js").Route} route
 * @param {number[]} layers
 */
function steps(route, layers) {
  return route.map((experts, row) => make("li", "", `layer ${layers[row] ?? row}: ${experts.join(", ")}`));
}

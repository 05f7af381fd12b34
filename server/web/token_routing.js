/** The experts that a token was routed to, layer by layer, and the adapters that wrote it. */

import { byId, make, write } from "./dom.js";
import { weightsOf, weightsText } from "./model_colours.js";

/**
 * @typedef {import("./heatmap.js").Heatmap} Heatmap
 * @typedef {import("./transcript.js").Token} Token
 */

const MAX_ANNOUNCED = 12; // layers announced to screen readers; the list has all of them

/**
 * Show the experts of a token, as a line on the heatmap and as a list, and the weights of its adapters.
 *
 * @param {Token | null} token
 * @param {Heatmap} heatmap
 */
export function showRouting(token, heatmap) {
  const { experts } = heatmap;
  const facts = byId("token-facts");
  facts.hidden = token === null;
  if (!token || !experts) {
    heatmap.mark({ route: [] });
    return;
  }
  const route = token.routes[0] ?? [];
  const isComplete = route.length === experts.layers.length;
  heatmap.mark({ route: isComplete ? route : [] });
  const title = `Experts of token ${JSON.stringify(token.text)} per layer, highest router weight first`;
  write(byId("token-title"), isComplete ? title : `${title} (its layers differ from those of the heatmap)`);
  const adapters = token.adapters.some((each) => Object.keys(each).length) ? weightsText(weightsOf(token)) : "";
  byId("token-adapters").hidden = !adapters;
  write(byId("token-adapters"), `Adapters, by their mean weight over the layers: ${adapters}`);
  byId("token-routing").replaceChildren(...items(route, isComplete ? experts.layers : []));
  const top = route.slice(0, MAX_ANNOUNCED).map((experts) => experts[0]);
  const words = [`Token ${token.text}`, ...(adapters ? [`adapters: ${adapters}`] : []), `top expert of each layer: ${top.join(", ")}`];
  byId("cursor-live").textContent = words.join(", ");
}

/**
 * Return one list item per layer.
 *
 * @param {import("./chat_stream.js").Route} route
 * @param {number[]} layers
 */
function items(route, layers) {
  return route.map((experts, row) => make("li", "", `layer ${layers[row] ?? row}: ${experts.join(", ")}`));
}

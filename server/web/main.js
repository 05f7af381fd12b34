/** Brings the parts of the dashboard together. */

import { ConnectionLine, offerKey } from "./connection.js";
import { byId, write } from "./dom.js";
import { Experts } from "./experts.js";
import { Feed } from "./feed.js";
import { Inspector } from "./inspector.js";
import { MemoryBar } from "./memory.js";
import { Navigation } from "./navigation.js";
import { Numbers } from "./numbers.js";
import { showPath } from "./path.js";
import { Playground } from "./playground.js";
import { RateWindow } from "./rates.js";
import { Requests } from "./requests.js";
import { showServed } from "./served.js";
import { Stage } from "./stage.js";
import { offerThemes } from "./theme.js";
import { Tiers } from "./tiers.js";
import { Transcript } from "./transcript.js";

const LOOK_MS = 250; // between two texts about the chosen expert

const stage = new Stage();
const inspector = new Inspector();
const numbers = new Numbers(byId("tiles"));
const tiers = new Tiers(byId("tiers"));
const memory = new MemoryBar();
const requests = new Requests();
const transcript = new Transcript({
  onChoice: (token) => showPath(token, stage),
  onChange: () => experts && showServed(transcript, experts, inspector.chosen),
});
const playground = new Playground(transcript);
const line = new ConnectionLine(() => feed.start());

/** @type {Experts | null} */
let experts = null;
let rates = new RateWindow();
let lookedAt = -Infinity;

const feed = new Feed({
  onSnapshot(snapshot) {
    const now = performance.now();
    const before = experts;
    experts = new Experts(snapshot, now);
    if (before && !experts.isLike(before)) transcript.forgetRoutes();
    rates = new RateWindow();
    requests.clear();
    write(byId("model"), experts.model);
    document.title = `${experts.model} – Greenroom`;
    stage.show(experts);
    inspector.take(experts);
    choose(inspector.chosen);
    playground.offerLayers(experts.layers.map(String));
    void playground.loadModels();
    showTotals(snapshot, now);
  },
  onUpdate(update) {
    const now = performance.now();
    experts?.update(update, now);
    stage.refresh();
    showTotals(update, now);
  },
  onState(state, message, waitMs) {
    line.show(state, message, waitMs);
    if (state !== "connecting") stage.age(state !== "live", message);
  },
});

/**
 * @param {import("./experts.js").Totals} totals
 * @param {number} now
 */
function showTotals(totals, now) {
  if (!experts) return;
  numbers.show(totals, rates.add(totals, now), now);
  tiers.show(totals, experts, now);
  memory.show(totals.memory, now);
  requests.show(totals, now);
  if (now - lookedAt < LOOK_MS) return;
  lookedAt = now;
  inspector.show();
  stage.tell(stage.marks.cursor);
}

/** @param {number} index -1 for none */
function choose(index) {
  stage.mark({ chosen: index });
  inspector.choose(index);
  if (experts) showServed(transcript, experts, index);
}

new Navigation(stage, {
  choose(index, isByKey) {
    choose(index);
    if (isByKey) inspector.focus();
  },
  act(action, index) {
    void inspector.act(action, index);
  },
  clear() {
    transcript.choose(-1);
    choose(-1);
  },
});

offerThemes(/** @type {HTMLSelectElement} */ (byId("theme")), () => stage.rebuild());
offerKey(() => {
  feed.start();
  void playground.loadModels();
});
document.addEventListener("visibilitychange", () => (document.hidden ? feed.stop() : feed.start()));
feed.start();
void playground.loadModels();

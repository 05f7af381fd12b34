/** Entry point: connects the parts of the dashboard. */

import { takeKeyFromAddress } from "./api.js";
import { BalanceText } from "./balance.js";
import { ConnectionStatus, initKeyDialog } from "./connection.js";
import { byId, write } from "./dom.js";
import { Experts } from "./experts.js";
import { ExpertPicker } from "./expert_picker.js";
import { ExpertStream } from "./expert_stream.js";
import { Inspector } from "./inspector.js";
import { Lines } from "./lines.js";
import { MemoryBar } from "./memory_bar.js";
import { History } from "./history.js";
import { HeatmapInput } from "./heatmap_input.js";
import { MetricTiles } from "./metric_tiles.js";
import { showRouting } from "./token_routing.js";
import { Playground } from "./playground.js";
import { RateWindow } from "./rates.js";
import { Requests } from "./requests.js";
import { showDomains } from "./expert_domains.js";
import { Heatmap } from "./heatmap.js";
import { initThemePicker } from "./theme.js";
import { ServerFacts } from "./server_facts.js";
import { Tiers } from "./tiers.js";
import { Transcript } from "./transcript.js";
import { Warnings } from "./warnings.js";
import { Weights } from "./weights.js";

const TEXT_INTERVAL_MS = 250; // between updates of the text about the selected expert

const heatmap = new Heatmap();
const balanceText = new BalanceText();
const inspector = new Inspector();
const metricTiles = new MetricTiles(byId("tiles"), /** @type {HTMLSelectElement} */ (byId("line-range")));
const lines = new Lines();
const tiers = new Tiers(byId("tiers"));
const memory = new MemoryBar();
const facts = new ServerFacts();
const warnings = new Warnings();
const requests = new Requests();
const transcript = new Transcript({
  onSelect: (token) => showRouting(token, heatmap),
  onChange: () => experts && showDomains(transcript, experts, inspector.selected),
});
const playground = new Playground(transcript);
const weights = new Weights((routers) => void playground.loadModels(routers));
const picker = new ExpertPicker((index) => {
  if (index >= 0) heatmap.scrollTo(index);
  select(index);
});
const connectionStatus = new ConnectionStatus(() => stream.start());

/** @type {Experts | null} */
let experts = null;
let rates = new RateWindow();
let history = new History();
let textAt = -Infinity;

const stream = new ExpertStream({
  onSnapshot(snapshot) {
    const now = performance.now();
    const before = experts;
    experts = new Experts(snapshot, now);
    if (before && !experts.isSameModel(before)) transcript.clearRoutes();
    rates = new RateWindow();
    history = new History();
    lines.clear();
    requests.clear();
    weights.clear();
    void facts.loadVersion();
    write(byId("model"), experts.model);
    document.title = `${experts.model} – Greenroom`;
    heatmap.show(experts);
    picker.setExperts(experts);
    inspector.setExperts(experts);
    select(inspector.selected);
    playground.setLayers(experts.layers.map(String));
    void playground.loadModels();
    showTotals(snapshot, now);
  },
  onUpdate(update) {
    const now = performance.now();
    experts?.update(update, now);
    heatmap.refresh();
    showTotals(update, now);
  },
  onAccess(state) {
    for (const id of ["monitor", "line-range-field"]) byId(id).hidden = state !== "live";
    byId("playground").hidden = state === "locked";
    byId("locked").hidden = state !== "locked";
    const [link] = document.getElementsByClassName("skip-link");
    link.toggleAttribute("hidden", state !== "live");
    if (state === "live") return; // a snapshot fills the panels
    requests.clear();
    weights.clear();
    if (state === "locked") return;
    void facts.loadVersion();
    void playground.loadModels([]);
  },
  onState(state, message, waitMs, canEnterKey) {
    connectionStatus.show(state, message, waitMs, canEnterKey);
    if (state !== "connecting") heatmap.setStale(state !== "live", message);
  },
});

/**
 * @param {import("./experts.js").Totals} totals
 * @param {number} now
 */
function showTotals(totals, now) {
  if (!experts) return;
  history.add(totals, now);
  lines.show(now);
  metricTiles.show(totals, rates.add(totals, now), lines, now);
  tiers.show(totals, experts, now);
  memory.show(totals.memory, now);
  requests.show(totals, now);
  weights.show(now);
  if (now - textAt < TEXT_INTERVAL_MS) return;
  textAt = now;
  facts.show(totals);
  balanceText.show(experts.balance);
  warnings.show(history);
  inspector.show();
  heatmap.describe(heatmap.marks.cursor);
}

/** @param {number} index -1 for none */
function select(index) {
  heatmap.mark({ selected: index });
  picker.show(index);
  inspector.select(index);
  if (experts) showDomains(transcript, experts, index);
}

new HeatmapInput(heatmap, {
  select(index, isByKey) {
    select(index);
    if (isByKey) inspector.focus();
    else inspector.reveal();
  },
  act(action, index) {
    if (index !== inspector.selected) select(index);
    void inspector.act(action, index);
  },
  clear() {
    transcript.select(-1);
    select(-1);
  },
});

initThemePicker(/** @type {HTMLSelectElement} */ (byId("theme")), () => heatmap.rebuild());
takeKeyFromAddress();
initKeyDialog(() => stream.start());
addEventListener("hashchange", () => takeKeyFromAddress() && stream.start());
document.addEventListener("visibilitychange", () => (document.hidden ? stream.stop() : stream.start()));
stream.start();

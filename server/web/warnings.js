/**
 * Warnings: the conditions of the alert rules (docker/prometheus/rules.yml) that the totals of a minute can show.
 *
 * The rules of Prometheus look at five minutes or more, so they fire later. The page can't know `GreenroomHitRatioFalling`,
 * which compares with an hour; the connection status shows a server that is down or whose engine is dead.
 */

import { byId, make } from "./dom.js";
import { percent, plural } from "./format.js";

/**
 * @typedef {import("./history.js").History} History
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {object} Rule
 * @property {string} alert name of the alert of Prometheus
 * @property {number} limit of that alert
 * @property {(history: History, limit: number) => string} find returns the warning; empty for none
 * @property {string} action
 */

const MIN_BUSY_SECONDS = 30; // of the minute, so that the first request on a cold cache raises no warning

/** @type {Rule[]} */
export const RULES = [
  {
    alert: "GreenroomExpertsQuarantined",
    limit: 0,
    find({ latest }, limit) {
      const number = latest?.num_quarantined ?? 0;
      return number > limit ? `Experts whose checksums do not match: ${number}. Requests that need them fail.` : "";
    },
    action: "Download or pack the model again, check disk and memory, then restart.",
  },
  {
    alert: "GreenroomExpertLoadFailures",
    limit: 0,
    find(history, limit) {
      const failures = history.growth((totals) => totals.num_load_failures);
      return failures > limit ? `${plural(failures, "read")} of experts failed within a minute.` : "";
    },
    action: "The log names the experts and the error. Restore the files and check the disk.",
  },
  {
    alert: "GreenroomRequestsFail",
    limit: 0.05,
    find(history, limit) {
      const failed = history.growth(({ finished_requests: { error, deadline } }) => error + deadline);
      const all = history.growth((totals) => Object.values(totals.finished_requests).reduce((one, other) => one + other, 0));
      return all && failed / all > limit ? `${percent(failed / all)} of requests ended with an error or at their deadline.` : "";
    },
    action: "The log has a line for each error. If there are only deadlines, the server is too slow for its clients.",
  },
  {
    alert: "GreenroomQueueGrowing",
    limit: 8,
    find(history, limit) {
      const { first, latest } = history;
      const isLong = history.everySample((totals) => totals.num_requests_waiting > limit);
      if (!isLong || !first || !latest || latest.num_requests_waiting < 0.9 * first.num_requests_waiting) return "";
      return `${plural(latest.num_requests_waiting, "request")} wait in the queue, which is not getting shorter.`;
    },
    action: "Add replicas or limit the request rate.",
  },
  {
    alert: "GreenroomMemoryTight",
    limit: 0.85,
    find(history, limit) {
      const isTight = history.everySample((totals) => otherShare(totals) > limit);
      return isTight && history.latest ? `${percent(otherShare(history.latest))} of the memory budget is used by other parts than experts.` : "";
    },
    action: "Raise --memory or send fewer concurrent requests.",
  },
  {
    alert: "GreenroomExpertStalls",
    limit: 0.5,
    find(history, limit) {
      const busy = history.growth((totals) => totals.step_seconds);
      const share = busy >= MIN_BUSY_SECONDS ? history.growth((totals) => totals.stall_seconds) / busy : 0;
      return share > limit ? `${percent(share)} of engine time is spent waiting for experts.` : "";
    },
    action: "Raise --memory, pack the model with smaller weights, or move it to a faster disk.",
  },
  {
    alert: "GreenroomHitRatioBelowOptimum",
    limit: 0.2,
    find(history, limit) {
      const isFar = history.everySample((totals) => belowOptimum(totals) > limit);
      const isBusy = history.growth((totals) => totals.prompt_tokens + totals.generation_tokens) > 0;
      return isFar && isBusy ? "The hit ratio is far below the optimum for the same memory." : "";
    },
    action: "Record routing with --trace-file, compare policies with greenroom replay, and set the best --cache-policy.",
  },
];

/** @param {Totals} totals */
function otherShare({ memory: { budget_bytes: budget, parts } }) {
  const used = Object.entries(parts).reduce((sum, [name, bytes]) => (name === "experts" ? sum : sum + bytes), 0);
  return budget ? used / budget : 0;
}

/** @param {Totals} totals */
function belowOptimum({ hit_ratio: ratio, optimal_hit_ratio: optimal }) {
  return ratio === null || optimal === null ? 0 : optimal - ratio;
}

export class Warnings {
  constructor() {
    this.panel = byId("warnings");
    this.list = byId("warning-list");
    this.shown = "";
  }

  /** @param {History} history */
  show(history) {
    const found = RULES.map((rule) => ({ rule, text: rule.find(history, rule.limit) })).filter(({ text }) => text);
    const key = JSON.stringify(found.map(({ text }) => text));
    if (key === this.shown) return;
    this.shown = key;
    this.panel.hidden = !found.length;
    this.list.replaceChildren(
      ...found.map(({ rule, text }) => {
        const item = make("li");
        item.title = `${rule.alert} in the alert rules of Prometheus`;
        item.append(make("strong", "", text), ` ${rule.action}`);
        return item;
      }),
    );
  }
}

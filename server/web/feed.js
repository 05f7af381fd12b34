/** The stream of experts, which comes back by itself when the server does. */

import { ServerError, UNREACHABLE, request, sentence } from "./api.js";
import { events } from "./sse.js";

const INTERVAL_SECONDS = 0.1;
const PATIENCE_MS = 10_000; // until a server that says nothing counts as gone
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5_000;
const LOCKED = new Set([401, 403]);
const HOPELESS = new Set([400, 404]); // against which waiting does not help
const LOADING = 503;
/** @type {Record<string, string>} why a stream ended, by what /ready says */
const ENDS = {
  draining: "The server is shutting down.",
  dead: "The engine has stopped: see the server's log and restart it.",
};

/**
 * @typedef {import("./experts.js").Snapshot} Snapshot
 * @typedef {import("./experts.js").Update} Update
 * @typedef {"connecting" | "live" | "loading" | "waiting" | "locked" | "refused"} FeedState
 * @typedef {object} Listener
 * @property {(snapshot: Snapshot) => void} onSnapshot
 * @property {(update: Update) => void} onUpdate
 * @property {(state: FeedState, message: string, waitMs: number) => void} onState
 */

export class Feed {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    this.failures = 0;
    /** @type {AbortController | null} */
    this.connection = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
  }

  /** Connect now, whatever was going on. */
  start() {
    this.stop();
    this.connection = new AbortController();
    void this.follow(this.connection);
  }

  /** Leave the server alone, as while nobody looks. */
  stop() {
    clearTimeout(this.timer);
    this.connection?.abort();
    this.connection = null;
  }

  /** @param {AbortController} connection */
  async follow(connection) {
    this.listener.onState("connecting", "Connecting", 0);
    let problem;
    /** @type {FeedState} */
    let state = "waiting";
    try {
      await this.read(connection);
      problem = await reason();
    } catch (error) {
      const status = error instanceof ServerError ? error.status : 0;
      if (LOCKED.has(status)) state = "locked";
      else if (HOPELESS.has(status)) state = "refused";
      else if (status === LOADING) state = "loading";
      problem = sentence(error);
    }
    if (connection !== this.connection) return; // another one took over, or nobody looks
    if (state === "locked" || state === "refused") {
      this.listener.onState(state, problem, 0);
      return;
    }
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.failures) * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.listener.onState(state, problem, wait);
    this.timer = setTimeout(() => this.start(), wait);
  }

  /** @param {AbortController} connection */
  async read(connection) {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watchdog;
    let isLive = false;
    const isAlive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => connection.abort(), PATIENCE_MS);
    };
    isAlive();
    try {
      const path = `/v1/experts/stream?interval=${INTERVAL_SECONDS}`;
      const response = await request(path, { signal: connection.signal });
      for await (const { name, data } of events(response, isAlive)) {
        if (connection !== this.connection) return;
        if (name === "snapshot") {
          this.listener.onSnapshot(JSON.parse(data));
        } else if (name === "update") {
          // A server that is about to end sends a snapshot and no more: it is not back before an update comes.
          if (!isLive) this.listener.onState("live", "Live", 0);
          isLive = true;
          this.failures = 0;
          this.listener.onUpdate(JSON.parse(data));
        }
      }
    } finally {
      clearTimeout(watchdog);
    }
  }
}

/** @returns {Promise<string>} why the server ended the stream */
async function reason() {
  try {
    const { status } = await (await fetch("/ready", { cache: "no-store" })).json();
    return ENDS[status] ?? "The server ended the stream.";
  } catch {
    return UNREACHABLE;
  }
}

/** The stream of experts, which comes back by itself when the server does. */

import { ServerError, request, sentence } from "./api.js";
import { events } from "./sse.js";

const INTERVAL_SECONDS = 0.1;
const PATIENCE_MS = 10_000; // until a server that says nothing counts as gone
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const HOPELESS = new Set([400, 401, 403, 404]); // against which waiting does not help

/**
 * @typedef {import("./experts.js").Snapshot} Snapshot
 * @typedef {import("./experts.js").Update} Update
 * @typedef {"connecting" | "live" | "waiting" | "refused"} FeedState
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
    let problem = "The server ended the stream.";
    try {
      await this.read(connection);
    } catch (error) {
      if (error instanceof ServerError && HOPELESS.has(error.status) && connection === this.connection) {
        this.listener.onState("refused", error.message, 0);
        return;
      }
      problem = sentence(error);
    }
    if (connection !== this.connection) return; // another one took over, or nobody looks
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.failures) * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.listener.onState("waiting", problem, wait);
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

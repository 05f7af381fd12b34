/** The stream of expert states (`/v1/experts/stream`), which reconnects after a failure. */

import { askAccess, describeAccess } from "./access.js";
import { ServerError, UNREACHABLE, errorText, request } from "./api.js";
import { events } from "./sse.js";

const INTERVAL_SECONDS = 0.1;
const TIMEOUT_MS = 10_000; // without data, after which the connection is closed
const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 5_000;
const PERMANENT = new Set([400, 403, 404]); // a retry cannot succeed
const LOADING = 503;
/** @type {Record<string, string>} why a stream ended, by the status that /ready returns */
const END_REASONS = {
  draining: "The server is shutting down.",
  dead: "The engine has stopped. See the server's log, then restart the server.",
};

/**
 * @typedef {import("./experts.js").Snapshot} Snapshot
 * @typedef {import("./experts.js").Update} Update
 * @typedef {"connecting" | "live" | "loading" | "waiting" | "limited" | "locked" | "refused"} StreamState
 * @typedef {object} Listener
 * @property {(snapshot: Snapshot) => void} onSnapshot
 * @property {(update: Update) => void} onUpdate
 * @property {(state: StreamState, message: string, waitMs: number, canEnterKey: boolean) => void} onState
 * @property {(state: import("./access.js").AccessState) => void} onAccess what the key may do
 */

export class ExpertStream {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    this.failures = 0;
    /** @type {AbortController | null} */
    this.connection = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
  }

  /** Connect now, replacing any connection or pending retry. */
  start() {
    this.stop();
    this.connection = new AbortController();
    void this.follow(this.connection);
  }

  /** Disconnect, such as while the page is hidden. */
  stop() {
    clearTimeout(this.timer);
    this.connection?.abort();
    this.connection = null;
  }

  /** @param {AbortController} connection */
  async follow(connection) {
    this.listener.onState("connecting", "Connecting", 0, false);
    let problem;
    /** @type {StreamState} */
    let state = "waiting";
    try {
      const access = describeAccess(await askAccess());
      if (connection !== this.connection) return;
      this.listener.onAccess(access.state);
      if (access.state !== "live") {
        this.listener.onState(access.state, access.text, 0, access.canEnterKey);
        return;
      }
      await this.read(connection);
      problem = await endReason();
    } catch (error) {
      const status = error instanceof ServerError ? error.status : 0;
      if (PERMANENT.has(status)) state = "refused";
      else if (status === LOADING) state = "loading";
      problem = errorText(error);
    }
    if (connection !== this.connection) return; // replaced or stopped
    if (state === "refused") {
      this.listener.onState(state, problem, 0, false);
      return;
    }
    const wait = Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** this.failures) * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.listener.onState(state, problem, wait, false);
    this.timer = setTimeout(() => this.start(), wait);
  }

  /** @param {AbortController} connection */
  async read(connection) {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watchdog;
    let isLive = false;
    const onBytes = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => connection.abort(), TIMEOUT_MS);
    };
    onBytes();
    try {
      const path = `/v1/experts/stream?interval=${INTERVAL_SECONDS}`;
      const response = await request(path, { signal: connection.signal });
      for await (const { name, data } of events(response, onBytes)) {
        if (connection !== this.connection) return;
        if (name === "snapshot") {
          this.listener.onSnapshot(JSON.parse(data));
        } else if (name === "update") {
          // A server that is shutting down may still send a snapshot, so only an update means that the stream is live.
          if (!isLive) this.listener.onState("live", "Live", 0, false);
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
async function endReason() {
  try {
    const { status } = await (await fetch("/ready", { cache: "no-store" })).json();
    return END_REASONS[status] ?? "The server ended the stream.";
  } catch {
    return UNREACHABLE;
  }
}

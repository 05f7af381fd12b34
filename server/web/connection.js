/** The connection status in the header, and the dialog for the API key. */

import { saveKey, savedKey } from "./api.js";
import { byId, write } from "./dom.js";

/** @typedef {import("./expert_stream.js").StreamState} StreamState */

export class ConnectionStatus {
  /** @param {() => void} reconnect */
  constructor(reconnect) {
    this.line = byId("connection");
    this.text = byId("connection-text");
    this.wait = byId("connection-wait");
    this.button = byId("reconnect");
    this.keyButton = byId("enter-key");
    this.announcement = byId("announcement");
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this.clock = undefined;
    this.announced = "";
    this.button.addEventListener("click", reconnect);
  }

  /**
   * @param {StreamState} state
   * @param {string} message
   * @param {number} waitMs until the next attempt
   * @param {boolean} canEnterKey true if another key may help
   */
  show(state, message, waitMs, canEnterKey) {
    clearInterval(this.clock);
    write(this.wait, "");
    // Between two attempts, keep the reason of the failure instead of "Connecting".
    if (state === "connecting" && this.announced) return;
    const isWaiting = state === "waiting" || state === "loading";
    const hasReason = isWaiting || state === "refused" || state === "limited" || state === "locked";
    this.line.dataset.state = state;
    this.button.hidden = !hasReason || canEnterKey;
    this.keyButton.hidden = !canEnterKey;
    write(this.text, message);
    this.announce(state === "live" ? "Receiving live data." : hasReason ? message : "");
    if (isWaiting) this.countDown(performance.now() + waitMs);
  }

  /** @param {number} due time of the next attempt */
  countDown(due) {
    const tick = () => write(this.wait, `Reconnecting in ${Math.max(1, Math.ceil((due - performance.now()) / 1000))} s.`);
    tick();
    this.clock = setInterval(tick, 1000);
  }

  /** @param {string} text announced to screen readers when it changes */
  announce(text) {
    if (!text || text === this.announced) return;
    this.announced = text;
    this.announcement.textContent = text;
  }
}

/** @param {() => void} onKey called after the key was saved or removed */
export function initKeyDialog(onKey) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const input = /** @type {HTMLInputElement} */ (byId("key"));
  for (const id of ["open-key", "enter-key"]) {
    byId(id).addEventListener("click", () => {
      input.value = savedKey();
      dialog.showModal();
      input.focus();
    });
  }
  byId("close-key").addEventListener("click", () => dialog.close(""));
  byId("key-form").addEventListener("submit", (event) => {
    const button = /** @type {SubmitEvent} */ (event).submitter;
    saveKey(button instanceof HTMLButtonElement && button.value === "forget" ? "" : input.value.trim());
    input.value = "";
    onKey();
  });
}

/** The line that says whether the stage is live, and the form for a key. */

import { saveKey, savedKey } from "./api.js";
import { byId, write } from "./dom.js";

/** @typedef {import("./feed.js").FeedState} FeedState */

export class ConnectionLine {
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
    this.told = "";
    this.button.addEventListener("click", reconnect);
  }

  /**
   * @param {FeedState} state
   * @param {string} message
   * @param {number} waitMs until the next attempt
   */
  show(state, message, waitMs) {
    clearInterval(this.clock);
    write(this.wait, "");
    // Between two attempts the reason stays: "Connecting" is of use to nobody then.
    if (state === "connecting" && this.told) return;
    const isWaiting = state === "waiting" || state === "loading";
    const isTroubled = isWaiting || state === "refused" || state === "locked";
    this.line.dataset.state = state;
    this.button.hidden = !isTroubled || state === "locked";
    this.keyButton.hidden = state !== "locked";
    write(this.text, message);
    this.tell(state === "live" ? "The stage is live." : isTroubled ? message : "");
    if (isWaiting) this.count(performance.now() + waitMs);
  }

  /** @param {number} due */
  count(due) {
    const tick = () => write(this.wait, `Reconnecting in ${Math.max(1, Math.ceil((due - performance.now()) / 1000))} s.`);
    tick();
    this.clock = setInterval(tick, 1000);
  }

  /** @param {string} text for screen readers, once each time it changes */
  tell(text) {
    if (!text || text === this.told) return;
    this.told = text;
    this.announcement.textContent = text;
  }
}

/** @param {() => void} onKey called when another key is there, or none */
export function offerKey(onKey) {
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

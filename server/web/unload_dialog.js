/** The dialog that asks before an expert variant or an adapter is unloaded. */

import { byId, write } from "./dom.js";

/**
 * @param {string} kind
 * @param {string} name
 * @returns {Promise<boolean>} true if the user confirms
 */
export function confirmUnload(kind, name) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("unload-dialog"));
  write(byId("unload-title"), `Unload the ${kind} ${name}?`);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "unload"), { once: true });
  });
}

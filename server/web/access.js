/** What the key of this page may do, as the server tells (`/v1/access`). */

import { request, savedKey } from "./api.js";

const UNAUTHORIZED = 401;

/**
 * @typedef {{allowed: boolean, status: number | null, message: string | null}} Permission
 * @typedef {{user: Permission, admin: Permission}} Access to chats and models, and to all else
 * @typedef {"live" | "limited" | "locked"} AccessState what the page can show: all, the playground, or nothing
 */

/**
 * @returns {Promise<Access>}
 * @throws {import("./api.js").ServerError}
 */
export async function askAccess() {
  return (await request("/v1/access")).json();
}

/**
 * @param {Access} access
 * @returns {{state: AccessState, text: string, canEnterKey: boolean}}
 */
export function describeAccess({ user, admin }) {
  if (admin.allowed) return { state: "live", text: "", canEnterKey: false };
  if (!user.allowed) {
    const text = savedKey() ? "The server rejected the API key." : "The server requires an API key.";
    return { state: "locked", text, canEnterKey: true };
  }
  // 403 without a key: the server has no admin keys and serves only its own machine, so a key would not help.
  if (admin.status !== UNAUTHORIZED && !savedKey()) {
    return { state: "limited", text: `Playground only. ${admin.message}`, canEnterKey: false };
  }
  return { state: "limited", text: "Playground only: the other panels need an admin key.", canEnterKey: true };
}

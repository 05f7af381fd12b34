/** Requests to the server of this page, with the API key that the user entered. */

const KEY = "greenroom-key"; // in sessionStorage, which is cleared when the tab is closed

export const UNREACHABLE = "The server can't be reached.";

/** A failed request; the message is one sentence for the user. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} status HTTP status; 0 if there was no response
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @returns {string} the API key; empty if none was entered */
export function savedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} key empty to remove the saved key */
export function saveKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/**
 * Save the key in the fragment of the address, `/#key=KEY`, and remove it from there. No server sees a fragment.
 *
 * @returns {boolean} true if there was one
 */
export function takeKeyFromAddress() {
  const [, key] = location.hash.match(/^#key=([!-~]+)$/) ?? [];
  if (!key) return false;
  saveKey(decodeURIComponent(key));
  history.replaceState(null, "", location.pathname);
  return true;
}

/**
 * Send a request and return the response if it succeeded.
 *
 * @param {string} path
 * @param {{method?: string, body?: unknown, signal?: AbortSignal}} [options] a body makes it a POST
 * @returns {Promise<Response>}
 * @throws {ServerError} unless the signal aborted the request
 */
export async function request(path, { method, body, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  const key = savedKey();
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServerError(UNREACHABLE, 0);
  }
  if (!response.ok) throw new ServerError(await errorMessage(response, key), response.status);
  return response;
}

/**
 * @param {Response} response
 * @param {string} key the key that was sent
 * @returns {Promise<string>}
 */
async function errorMessage(response, key) {
  // The server's own message names HTTP headers, which a user of this page does not set.
  if (response.status === 401) return key ? "The server rejected the API key." : "The server requires an API key.";
  try {
    const { error } = await response.json();
    // A 503 message continues after a colon with advice for API clients; leave it out.
    if (typeof error?.message === "string") return response.status === 503 ? firstClause(error.message) : error.message;
  } catch {
    // The body is not JSON, such as a proxy's error page: report the status.
  }
  return `The server returned HTTP status ${response.status}.`;
}

/** @param {string} message */
function firstClause(message) {
  return message.replace(/:.*/s, ".");
}

/**
 * @param {unknown} error
 * @returns {string} one sentence
 */
export function errorText(error) {
  return error instanceof ServerError ? error.message : UNREACHABLE;
}

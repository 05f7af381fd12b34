/** Requests to the server that this page came from, with the key that was entered. */

const KEY = "greenroom-key"; // of sessionStorage, which forgets when the tab is closed

export const UNREACHABLE = "The server can't be reached.";

/** An answer other than the one asked for; its message is one sentence for people. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} status of HTTP; 0 if there was no answer
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @returns {string} the key, empty if none was entered */
export function savedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} key empty to forget it */
export function saveKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/**
 * The answer of a route, if it is a good one.
 *
 * @param {string} path
 * @param {{body?: unknown, signal?: AbortSignal}} [options] a body makes it a POST
 * @returns {Promise<Response>}
 * @throws {ServerError} unless the signal aborted the request
 */
export async function request(path, { body, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  const key = savedKey();
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServerError(UNREACHABLE, 0);
  }
  if (!response.ok) throw new ServerError(await complaint(response, key), response.status);
  return response;
}

/**
 * @param {Response} response
 * @param {string} key that was sent
 * @returns {Promise<string>}
 */
async function complaint(response, key) {
  // What the server says of keys is meant for those who write requests themselves.
  if (response.status === 401) return key ? "The API key is not one of this server's." : "The server wants an API key.";
  try {
    const { error } = await response.json();
    // What is said behind the colon of one that can't answer yet is meant for them, too.
    if (typeof error?.message === "string") return response.status === 503 ? clause(error.message) : error.message;
  } catch {
    // A proxy's page, or a body that was cut: the status says what there is to say.
  }
  return `The server answered with status ${response.status}.`;
}

/** @param {string} message */
function clause(message) {
  return message.replace(/:.*/s, ".");
}

/**
 * @param {unknown} error
 * @returns {string} one sentence
 */
export function sentence(error) {
  return error instanceof ServerError ? error.message : UNREACHABLE;
}

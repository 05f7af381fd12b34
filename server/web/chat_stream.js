/** A streamed chat completion, piece by piece, with the experts that made each. */

import { ServerError, request } from "./api.js";
import { events } from "./sse.js";

/**
 * @typedef {number[][]} Route of one token: by layer, the chosen experts, best first
 * @typedef {object} Piece
 * @property {string} text
 * @property {boolean} isReasoning
 * @property {Route[]} routes of the tokens that it is made of
 * @typedef {object} Usage
 * @property {number} completion_tokens
 * @property {{expert_requests: number, expert_misses: number, expert_bytes_read: number,
 *   expert_stall_seconds: number}} greenroom
 * @typedef {{piece?: Piece, usage?: Usage, finishReason?: string}} Told
 * @typedef {{role: "user" | "assistant", content: string}} Message
 */

/**
 * What a model answers to a conversation.
 *
 * @param {Record<string, unknown>} body of the request, without what makes it a stream
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Told, void, void>}
 * @throws {ServerError} the server refuses, or fails on the way
 */
export async function* answer(body, signal) {
  const response = await request("/v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true }, return_experts: true },
    signal,
  });
  /** @type {Route[]} */
  let routes = []; // of tokens whose text is held back
  let isWhole = false;
  for await (const { data } of events(response)) {
    if (data === "[DONE]") {
      isWhole = true; // and the connection can be used again once it is read to its end
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, response.status);
    if (chunk.usage) yield { usage: chunk.usage };
    for (const { delta, experts, finish_reason: finishReason } of chunk.choices) {
      routes.push(...(experts ?? []));
      const text = delta.content || delta.reasoning_content;
      if (text) {
        yield { piece: { text, isReasoning: !delta.content, routes } };
        routes = [];
      }
      if (finishReason) yield { finishReason };
    }
  }
  if (!isWhole) throw new ServerError("The answer broke off: the connection to the server was lost.", 0);
}

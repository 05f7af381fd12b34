/** A streamed chat completion, with the experts and adapters of each token. */

import { ServerError, request } from "./api.js";
import { events } from "./sse.js";

/**
 * @typedef {number[][]} Route experts chosen for one token, by layer, highest router weight first
 * @typedef {Record<string, number>} Weights of adapters for one token, by name, the heaviest first
 * @typedef {object} TextDelta
 * @property {string} text
 * @property {boolean} isReasoning
 * @property {Route[]} routes one per token of the text
 * @property {Weights[]} adapters one per token of the text
 * @property {string} model adapter, variant or base model that wrote it
 * @typedef {object} Usage
 * @property {number} completion_tokens
 * @property {{expert_requests: number, expert_misses: number, expert_bytes_read: number,
 *   expert_remote_bytes?: number, expert_stall_seconds: number}} greenroom
 * @typedef {{model: string, reason: string}} Choice of a router, and why
 * @typedef {{delta?: TextDelta, usage?: Usage, finishReason?: string, weights?: Weights, choice?: Choice}} ChatEvent with
 *   the mean weights of adapters, if they were chosen for each token
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 */

/**
 * Yield the model's answer to a conversation as it arrives.
 *
 * @param {Record<string, unknown>} body request body, without the fields for streaming
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<ChatEvent, void, void>}
 * @throws {ServerError} if the server refuses the request, or the stream fails
 */
export async function* answer(body, signal) {
  const response = await request("/v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true }, return_experts: true, return_adapters: true },
    signal,
  });
  /** @type {Route[]} */
  let routes = []; // routes of tokens whose text has not arrived yet
  /** @type {Weights[]} */
  let adapters = []; // of the same tokens
  let model = "";
  let isExplained = false; // the router's choice
  let isComplete = false;
  for await (const { data } of events(response)) {
    if (data === "[DONE]") {
      isComplete = true; // read on to the end, so that the browser can reuse the connection
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, response.status);
    // A router's choice comes with the first chunk.
    const { routing } = chunk.greenroom ?? {};
    if (routing && !isExplained) yield { choice: routing };
    isExplained ||= routing !== undefined;
    model = routing?.model ?? (model || chunk.model);
    if (routing?.weights) yield { weights: routing.weights };
    if (chunk.usage) yield { usage: chunk.usage };
    for (const { delta, experts, adapters: weights, finish_reason: finishReason } of chunk.choices) {
      routes.push(...(experts ?? []));
      adapters.push(...(weights ?? []));
      const text = delta.content || delta.reasoning_content;
      if (text) {
        yield { delta: { text, isReasoning: !delta.content, routes, adapters, model } };
        routes = [];
        adapters = [];
      }
      if (finishReason) yield { finishReason };
    }
  }
  if (!isComplete) throw new ServerError("The answer is incomplete: the connection to the server was lost.", 0);
}

/** Server-sent events read with fetch, because EventSource cannot send an API key. */

/**
 * @typedef {{name: string, data: string}} ServerSentEvent
 */

/**
 * Yield the events of a response as they arrive; an event without its final empty line is dropped.
 *
 * @param {Response} response
 * @param {() => void} [onBytes] called whenever data arrives
 * @returns {AsyncGenerator<ServerSentEvent, void, void>}
 */
export async function* events(response, onBytes = () => {}) {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let name = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const ended of lines) {
        const line = ended.endsWith("\r") ? ended.slice(0, -1) : ended;
        if (line === "") {
          if (data.length) yield { name: name || "message", data: data.join("\n") };
          name = "";
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line.startsWith("event:")) {
          name = line.slice(6).trim();
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // the stream may have failed already
  }
}

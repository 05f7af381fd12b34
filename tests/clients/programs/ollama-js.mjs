// Ollama's own client: models, answers, streams, JSON by a schema, embeddings.
import assert from "node:assert";
import { Ollama } from "ollama";

const model = process.env.MODEL;
const ollama = new Ollama({ host: process.env.GREENROOM_URL });
const messages = [{ role: "user", content: "How do I make tea?" }];
const options = { num_predict: 30 };

assert((await ollama.list()).models.some((each) => each.name.startsWith(model)));
assert((await ollama.show({ model })).model_info);
assert((await ollama.chat({ model, messages, options })).message.content);
let parts = 0;
for await (const _ of await ollama.chat({ model, messages, options, stream: true })) parts++;
assert(parts > 2);
const format = { type: "object", properties: { isHot: { type: "boolean" } }, required: ["isHot"] };
const made = await ollama.chat({ model, messages, options, format });
assert.equal(typeof JSON.parse(made.message.content).isHot, "boolean");
assert((await ollama.generate({ model, prompt: "Tea is", options })).response);
assert((await ollama.embed({ model, input: ["tea", "rice"] })).embeddings.length === 2);

// Vercel AI SDK: answers, streams, an object, a forced tool, embeddings.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embed, generateText, streamText, tool } from "ai";
import { z } from "zod";

const model = process.env.MODEL;
const provider = createOpenAICompatible({
  name: "greenroom",
  baseURL: `${process.env.GREENROOM_URL}/v1`,
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const asked = { model: provider(model), prompt: "How do I make tea?", maxOutputTokens: 30 };

const answer = await generateText(asked);
assert(answer.text);
assert(answer.usage.outputTokens > 0);

let parts = 0;
const stream = streamText(asked);
for await (const _ of stream.textStream) parts++;
assert(parts > 2);
assert((await stream.usage).outputTokens > 0);

const tea = z.object({ kind: z.enum(["green", "black"]), isHot: z.boolean() });
const made = await generateText({ ...asked, output: Output.object({ schema: tea }) });
tea.parse(made.output);

const brew = tool({ description: "Brews tea.", inputSchema: tea });
const called = await generateText({ ...asked, maxOutputTokens: 60, tools: { brew }, toolChoice: "required" });
tea.parse(called.toolCalls[0].input);

const { embedding } = await embed({ model: provider.embeddingModel(model), value: "tea" });
assert(embedding.length > 0);

console.log(`Node ${process.version}`);

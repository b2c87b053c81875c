// The AI SDK by Vercel: `ai_sdk.mjs BASE_URL`.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { answer } from "./answering.mjs";

const router = createOpenAICompatible({
  name: "router", baseURL: process.argv[2], apiKey: "sk-mine",
});

function request({ model, question, image, tools, text }, retries) {
  const [, mediaType, data] = image?.match(/^data:(.*);base64,(.*)$/) ?? [];
  const parts = [{ type: "text", text: question }, { type: "file", mediaType, data }];
  return {
    model: text ? router.completionModel(model) : router(model), maxRetries: retries,
    messages: [{ role: "user", content: image ? parts : question }],
    tools: tools && Object.fromEntries(tools.map(({ function: { name, parameters } }) =>
      [name, tool({ inputSchema: jsonSchema(parameters) })])),
  };
}

const called = (calls) => calls.map((call) => [call.toolName, JSON.stringify(call.input)]);

async function chat({ retries = 0, ...asked }) {
  const { text, toolCalls } = await generateText(request(asked, retries));
  return { text, tools: called(toolCalls) };
}

async function stream(asked) {
  const pieces = [];
  const result = streamText({ ...request(asked, 0), onError() {} });
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") pieces.push(part.text);
  }
  return { text: pieces.join(""), pieces: pieces.length, tools: called(await result.toolCalls) };
}

// Have a text completed, by the older route, as it comes.
const complete = (asked) => stream({ ...asked, text: true });

await answer({ chat, stream, complete });

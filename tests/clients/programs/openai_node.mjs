// OpenAI's client for Node.js: `openai_node.mjs BASE_URL`.

import OpenAI from "openai";
import { answer } from "./answering.mjs";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "sk-mine" });

function request({ model, question, image, tools }) {
  const shown = { type: "image_url", image_url: { url: image } };
  const parts = [{ type: "text", text: question }, shown];
  return { model, tools, messages: [{ role: "user", content: image ? parts : question }] };
}

async function chat({ retries = 0, ...asked }) {
  const answered = await client.chat.completions.create(request(asked), { maxRetries: retries });
  const { content, tool_calls } = answered.choices[0].message;
  const called = (tool_calls ?? []).map((call) => call.function);
  return { text: content, tools: called.map((one) => [one.name, one.arguments]) };
}

async function stream(asked) {
  const events = await client.chat.completions.create(
    { ...request(asked), stream: true }, { maxRetries: 0 });
  const pieces = [], calls = [];
  for await (const event of events) {
    for (const { delta } of event.choices) {
      if (delta.content) pieces.push(delta.content);
      calls.push(...(delta.tool_calls ?? []).map((call) => call.function));
    }
  }
  const joined = (key) => calls.map((call) => call[key] ?? "").join("");
  return {
    text: pieces.join(""), pieces: pieces.length,
    tools: calls.length ? [[joined("name"), joined("arguments")]] : [],
  };
}

// Have a text completed, by the older route, as it comes.
async function complete({ model, question }) {
  const events = await client.completions.create({ model, prompt: question, stream: true });
  const pieces = [];
  for await (const event of events) pieces.push(event.choices[0].text);
  return { text: pieces.join("") };
}

const models = async () => ({ models: (await client.models.list()).data });
const one_model = ({ model }) => client.models.retrieve(model);

await answer({ chat, stream, complete, models, one_model });

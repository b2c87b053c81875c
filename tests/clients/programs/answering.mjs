// How a program for Node.js talks to the tests: asked on stdin, answered on stdout, a line each.

import { createInterface } from "node:readline";

// Do what each line asks, and print what the client saw as one line of JSON.
// ways: name -> function that takes the other members of the line and returns what was seen
export async function answer(ways) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: way, ...asked } = JSON.parse(line);
    let seen;
    try {
      seen = await ways[way](asked);
    } catch (error) {
      seen = {
        raised: error.constructor.name, shown: error.message,
        status: error.status ?? error.statusCode ?? null,
        type: error.type ?? null, code: error.code ?? null, param: error.param ?? null,
      };
    }
    console.log(JSON.stringify(seen));
  }
}

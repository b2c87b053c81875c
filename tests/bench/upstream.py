"""A backend that does nothing but answer fast, as a process of its own.

Answers are made before the first request comes; a request costs it a search for the end of the
head and a write. Run as `python -m tests.bench.upstream`; prints its port.
"""

import asyncio
import json

from tests.support.feeds import models_feed, public_names, utilization_feed

# Models named like this answer with a stream of so many chunks.
STREAM_LENGTHS = (100, 1000)
EVENT = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":' \
        b'{"content":" word"}}]}\n\n'


def whole(body):
    return (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


def streamed(count):
    """Return a stream in the pieces it is written in: a chunk an event, ten chunks a write."""
    chunk = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
    head = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n")
    done = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    return [head, *[chunk * 10] * (count // 10), done]


ANSWERS = {b"stream-%d" % count: streamed(count) for count in STREAM_LENGTHS}
PLAIN = [whole(json.dumps({"object": "chat.completion", "choices": [
    {"index": 0, "message": {"role": "assistant", "content": "hello there"}}]}).encode())]
FEEDS = {
    b"GET /v1/models": [whole(json.dumps(models_feed(
        [*public_names(), "plain", *(f"stream-{count}" for count in STREAM_LENGTHS)])).encode())],
    b"GET /chutes/utilization": [whole(json.dumps(utilization_feed()).encode())]}


class Fast(asyncio.Protocol):
    """One connection; requests come one after the other, never ahead."""

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        _, announced, length = head.lower().partition(b"content-length: ")
        if announced and len(body) < int(length.split(b"\r\n")[0]):
            return
        self.data = b""
        feed = FEEDS.get(b" ".join(head.split(b" ", 2)[:2]))
        start = body.find(b'"stream-')
        name = body[start + 1:body.find(b'"', start + 1)] if start >= 0 else b""
        for piece in feed or ANSWERS.get(name, PLAIN):
            self.transport.write(piece)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Fast, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

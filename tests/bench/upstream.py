"""A backend that does nothing but answer fast, as a process of its own.

Answers are made before the first request comes; a request costs it a search for the end of the
head and a write. Run as `python -m tests.bench.upstream`; prints its port. The model's name says
what comes back:

    stream-100, stream-1000  a stream of so many events as fast as it goes, each its own chunk
    paced                    ten events, 20 ms apart, each stamped with its number and time
    endless                  an event a second until the client leaves, stamped the same way
    tokens                   25 a second until the client leaves, stamped the same way, each
                             written at its time to some tens of microseconds: tests.bench.tokens
    busy, gone               a 503; a 404 that says `model not found`
    lost, hangs              nothing: the connection is closed; it stays open
    large                    a completion of 500 KB; any other model gets one of 1 KB

The feeds are there at 1, 3 and 10 times the real ones' size: /1/v1/models and so on. /endless says
how many endless streams are open, and when the last one that has ended was seen to end.
"""

import asyncio
import itertools
import json
import os
import re
import time

from tests.bench.open_loop import allow_many_files
from tests.bench.tokens import Sender
from tests.support.feeds import models_feed, public_names, utilization_feed

STREAM_LENGTHS = (100, 1000)
FEED_SIZES = (1, 3, 10)
PACED_EVENTS, PACED_S, ENDLESS_S = 10, 0.02, 1.0
FAILING = ("busy", "gone", "lost", "hangs")
MODELS = ["plain", "large", "paced", "endless", "tokens", *FAILING,
          *(f"stream-{n}" for n in STREAM_LENGTHS)]
_NAMED = re.compile(
    f'"(large|paced|endless|tokens|{"|".join(FAILING)}|stream-[0-9]+)"'.encode())
_HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n")
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def event(content):
    """Return one event as a chunk of its own."""
    data = (b'data: {"id":"x","object":"chat.completion.chunk","created":1771393340,"model":"m",'
            b'"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
            % content)
    return b"%x\r\n%s\r\n" % (len(data), data)


def stamped(number):
    """Return an event that says which it is and when it was sent, on the host's clock."""
    return event(b"@%d.%d@" % (number, time.monotonic_ns()))


def streamed(count):
    """Return a stream in the pieces it is written in: ten events a write.

    They differ, since LiteLLM ends a stream that repeats itself.
    """
    ten = b"".join(event(b" word%d" % number) for number in range(10))
    return [_HEAD, *[ten] * (count // 10), _DONE]


def whole(document, status=b"200 OK"):
    body = json.dumps(document).encode()
    return [b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (status, len(body), body)]


def completion(size):
    """Return a completion of about `size` bytes."""
    return whole({"id": "x", "object": "chat.completion", "created": 1771393340, "model": "m",
                  "choices": [{"index": 0, "finish_reason": "stop", "message": {
                      "role": "assistant", "content": "x" * (size - 300)}}],
                  "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}})


PLAIN = completion(1000)
ANSWERS = {b"large": completion(500_000), b"hangs": [],
           b"busy": whole({"detail": "No instances available (yet)"}, b"503 Service Unavailable"),
           b"gone": whole({"detail": "model not found: gone"}, b"404 Not Found"),
           **{b"stream-%d" % count: streamed(count) for count in STREAM_LENGTHS}}


def feeds(times, seed):
    """Return both feeds at so many times the real ones' size; the seed makes them differ."""
    names = [*public_names(96 * times), *MODELS, f"other/Model-{seed}B"]
    # The real rows have a dozen keys more, which nobody here reads.
    rows = [{**row, **{f"statistic_{n}_per_instance": n * 0.125 for n in range(9)}}
            for row in utilization_feed(538 * times, 96 * times, seed)]
    return whole(models_feed(names)), whole(rows)


def feed_paths():
    """Return path -> an endless row of answers, no two alike that follow each other."""
    paths = {}
    for times in FEED_SIZES:
        models, rows = zip(feeds(times, 1), feeds(times, 2))
        paths[b"/%d/v1/models" % times] = itertools.cycle(models)
        paths[b"/%d/chutes/utilization" % times] = itertools.cycle(rows)
    return {**paths, b"/v1/models": paths[b"/1/v1/models"],
            b"/chutes/utilization": paths[b"/1/chutes/utilization"]}


FEEDS = feed_paths()
SENDER = Sender(stamped)


class Fast(asyncio.Protocol):
    """One connection; requests come one after the other, never ahead.

    endless   how many endless streams are open on all of them
    ended_ns  when the last one was seen to end, on the host's clock
    """

    endless = ended_ns = 0

    def connection_made(self, transport):
        self.transport, self.data, self.missing, self.name = transport, b"", 0, b""

    def connection_lost(self, error):
        if self.name == b"endless":
            Fast.endless, Fast.ended_ns = Fast.endless - 1, time.monotonic_ns()

    def data_received(self, data):
        if self.missing:
            # The rest of a long body: its length is all that matters.
            self.missing -= len(data)
        elif not self.begun(data):
            return
        if self.missing <= 0:
            self.missing = 0
            self.answer()

    def begun(self, data):
        """Say whether the head is there; note what was asked and how much is to come."""
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return False
        _, announced, length = head.lower().partition(b"content-length: ")
        missing = int(length.split(b"\r\n")[0]) - len(body) if announced else 0
        named = _NAMED.search(body)
        if missing > 0 and not named and len(body) < 200:
            return False
        self.path = head.split(b" ", 2)[1]
        self.name = named[1] if named else b""
        self.data, self.missing = b"", missing
        return True

    def answer(self):
        Fast.endless += self.name == b"endless"
        if self.name in (b"paced", b"endless"):
            self.transport.write(_HEAD)
            self.started = asyncio.get_running_loop().time()
            self.tick(0)
            return
        if self.name == b"tokens":
            self.transport.write(_HEAD)
            SENDER.add(os.dup(self.transport.get_extra_info("socket").fileno()))
            return
        if self.name == b"lost":
            self.transport.close()
            return
        for piece in self.pieces():
            self.transport.write(piece)

    def pieces(self):
        """Return the answer in the pieces it is written in."""
        if self.path == b"/endless":
            return whole({"open": Fast.endless, "ended_ns": Fast.ended_ns})
        feed = FEEDS.get(self.path)
        return next(feed) if feed else ANSWERS.get(self.name, PLAIN)

    def tick(self, number):
        """Send an event and have the next sent on time, however late this one is."""
        if self.transport.is_closing():
            return
        self.transport.write(stamped(number))
        apart = ENDLESS_S if self.name == b"endless" else PACED_S
        if self.name == b"paced" and number + 1 == PACED_EVENTS:
            self.transport.write(_DONE)
            return
        asyncio.get_running_loop().call_at(
            self.started + (number + 1) * apart, self.tick, number + 1)


async def main():
    allow_many_files()
    SENDER.start()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Fast, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

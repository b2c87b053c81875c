"""Load that does not wait for answers, and clients that look at every event's time.

Two kinds, each run in a process of its own that prints one JSON object:

    python -m tests.bench.open_loop arrive PORT RATE SECONDS
        so many `paced` streams a second, Poisson; the first byte is timed from the moment its
        request was due, so that a server which falls behind cannot slow its own measurement
    python -m tests.bench.open_loop hold PORT COUNT SECONDS
        so many `endless` streams at once; the gaps between events, and what was lost

Upstream and clients read one clock: an event says when it was sent.
"""

import asyncio
import collections
import json
import random
import re
import resource
import statistics
import sys
import time

_STAMP = re.compile(rb"@([0-9]+)\.([0-9]+)@")
_END = b"\r\n0\r\n\r\n"
# Opening streams is not what is measured: slow enough for a busy machine.
RAMP_A_SECOND, SETTLE_S, LATE_S = 250, 2.0, 2.5


def request(model):
    """Return a streaming request of 1 KB."""
    body = json.dumps({"model": model, "stream": True, "messages": [
        {"role": "user", "content": "x" * 900}]}).encode()
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
            b"Authorization: Bearer sk-of-the-benchmark\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


class Client(asyncio.Protocol):
    """One connection, with one stream after the other on it.

    on_event  called with the client, an event's number, when it was sent and when it was seen
    on_end    called with the client and whether the stream had its proper end
    """

    def __init__(self, on_event, on_end):
        self.on_event, self.on_end = on_event, on_end

    def connection_made(self, transport):
        self.transport, self.rest, self.busy = transport, b"", False

    def send(self, data, due=0):
        """Send a request that was due at a time; both are for the callbacks to know."""
        self.due, self.busy, self.expected, self.status = due, True, 0, ""
        self.transport.write(data)

    def data_received(self, data):
        now, data, read = time.monotonic_ns(), self.rest + data, 0
        self.status = self.status or data[9:12].decode()
        for found in _STAMP.finditer(data):
            self.on_event(self, int(found[1]), int(found[2]), now)
            self.expected = int(found[1]) + 1
            read = found.end()
        self.rest = data[read:]
        if self.rest.endswith(_END):
            self.rest, self.busy = b"", False
            self.on_end(self, True)

    def connection_lost(self, error):
        if self.busy:
            self.busy = False
            self.on_end(self, False)


class Arrivals:
    """Requests that come when they come."""

    def __init__(self):
        self.idle, self.first_ms, self.delay_ms = [], [], []
        self.ended = self.broken = 0

    def on_event(self, client, number, sent, seen):
        if number:
            self.delay_ms.append((seen - sent) / 1e6)
        else:
            self.first_ms.append((seen - client.due) / 1e6)

    def on_end(self, client, proper):
        self.ended += 1
        if proper:
            self.idle.append(client)
        else:
            self.broken += 1

    async def run(self, port, rate, seconds):
        """Send for some seconds; return what was seen."""
        loop, data, draw = asyncio.get_running_loop(), request("paced"), random.Random(1)
        due, until, sent = time.monotonic() + 0.1, time.monotonic() + 0.1 + seconds, 0
        self.idle += [(await self._connect(loop, port)) for _ in range(min(int(rate), 50))]
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            client = self._idle() or await self._connect(loop, port)
            client.send(data, due * 1e9)
            due, sent = due + draw.expovariate(rate), sent + 1
        for _ in range(100):
            if self.ended == sent:
                break
            await asyncio.sleep(0.1)
        return {"first_ms": summary(self.first_ms), "delay_ms": summary(self.delay_ms),
                "sent": sent, "unfinished": sent - self.ended + self.broken}

    def _idle(self):
        while self.idle:
            client = self.idle.pop()
            # A server may close what has been idle for some seconds.
            if not client.transport.is_closing():
                return client
        return None

    async def _connect(self, loop, port):
        return (await loop.create_connection(
            lambda: Client(self.on_event, self.on_end), "127.0.0.1", port))[1]


class Held:
    """Streams that stay open."""

    def __init__(self):
        self.gaps_ms, self.last_seen = [], {}
        self.lost = self.ended = 0
        self.counting = False

    def on_event(self, client, number, _, seen):
        self.lost += number != client.expected
        before = self.last_seen.get(client)
        if self.counting and before:
            self.gaps_ms.append((seen - before) / 1e6)
        self.last_seen[client] = seen

    def on_end(self, *_):
        self.ended += 1

    async def run(self, port, count, seconds):
        """Open the streams, hold them for some seconds, and return what was seen."""
        loop, data = asyncio.get_running_loop(), request("endless")
        clients, started = [], time.monotonic()
        for number in range(int(count)):
            await asyncio.sleep(max(0.0, started + number / RAMP_A_SECOND - time.monotonic()))
            clients.append((await loop.create_connection(
                lambda: Client(self.on_event, self.on_end), "127.0.0.1", port))[1])
            clients[-1].send(data)
        await asyncio.sleep(SETTLE_S)
        self.counting = True
        print("holding", flush=True)
        await asyncio.sleep(seconds)
        silent = sum(time.monotonic_ns() - self.last_seen.get(client, 0) > LATE_S * 1e9
                     for client in clients)
        return {"gaps_ms": summary(self.gaps_ms), "lost": self.lost + silent,
                "ended": self.ended, "events": len(self.gaps_ms),
                "refused": collections.Counter(
                    client.status for client in clients if client.status != "200")}


def summary(values):
    """Return median, 99th percentile and greatest of some values."""
    cuts = statistics.quantiles(values, n=100)
    return {"median": cuts[49], "p99": cuts[98], "worst": max(values)}


def allow_many_files():
    """Let this process have as many connections as the system permits."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main():
    """Do what the arguments say."""
    _, kind, port, much, seconds = sys.argv
    allow_many_files()
    load = {"arrive": Arrivals, "hold": Held}[kind]()
    print(json.dumps(asyncio.run(load.run(int(port), float(much), float(seconds)))))


if __name__ == "__main__":
    main()

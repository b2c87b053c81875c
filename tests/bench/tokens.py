"""Streams of 25 events a second each, one event a write: the upstream's end and the client's.

Both ends share what the measured server leaves free, so an event costs each of them a few
operations: the sender keeps its streams in the order they are due, the reader notes what came
when and looks into it after the time is over.

Run as `python -m tests.bench.tokens PORT` for the client's end. It takes lines `COUNT SECONDS`:
for each it opens streams until there are so many, prints `counting`, reads for so long, prints
`counted`, and then what `summarized` returns.
"""

import collections
import gc
import json
import os
import random
import re
import select
import socket
import sys
import threading
import time

from tests.bench.open_loop import allow_many_files, request, summary
from tests.support.router import DEADLINE_S

MODEL, APART_S = "tokens", 1 / 25
# At random, as people come: streams opened at even distances would send in step.
OPENED_A_SECOND, SETTLE_S = 500, 1.0
_STAMP = re.compile(rb"@[0-9]+\.([0-9]+)@")


class Sender(threading.Thread):
    """Sends an event to each of its streams every 40 ms, each in its own time.

    stamped  called with an event's number, returns the event's bytes with the time of now

    A thread, since an event loop's timers come a millisecond late, and then many at once. All
    streams have the same pace, so the one that was served last is due last.
    """

    def __init__(self, stamped):
        super().__init__(daemon=True)
        self.stamped, self.due = stamped, collections.deque()
        self.news = threading.Event()

    def add(self, descriptor):
        """Begin with a stream; the descriptor is closed here, when its client has left."""
        self.due.append((time.monotonic() + APART_S, descriptor, 0))
        self.news.set()

    def run(self):
        while True:
            if not self.due:
                self.news.wait()
                self.news.clear()
                continue
            at, descriptor, number = self.due.popleft()
            # Not for nought seconds: that takes the slack of the system's timer.
            if (early_s := at - time.monotonic()) > 0:
                time.sleep(early_s)
            try:
                event = self.stamped(number)
                assert os.write(descriptor, event) == len(event)
            except (OSError, AssertionError):
                # Its client has left, or has read nothing for megabytes.
                os.close(descriptor)
            else:
                self.due.append((at + APART_S, descriptor, number + 1))


class Reader:
    """Clients that read their streams and do nothing else."""

    def __init__(self, port):
        self.port, self.streams, self.poll = port, [], select.epoll()
        self.draw = random.Random(1)

    def open_until(self, count):
        """Open streams until there are so many."""
        due = time.monotonic()
        while len(self.streams) < count:
            sock = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
            sock.sendall(request(MODEL))
            self.streams.append(sock)
            self.poll.register(sock, select.EPOLLIN)
            due += self.draw.expovariate(OPENED_A_SECOND)
            self.read_until(due)

    def read_until(self, end):
        """Read what comes until a time; return (descriptor, when it came in ns, data) of each."""
        seen = []
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in self.poll.poll(left):
                data = os.read(descriptor, 65536)
                seen.append((descriptor, time.monotonic_ns(), data))
                if not data:
                    self.poll.unregister(descriptor)
        return seen


def delays_ms(seen):
    """Return how long each event took; it may have come in pieces.

    seen  (stream, when it came in ns, data), in the order of time
    """
    rest, delays = {}, []
    for stream, came, data in seen:
        data, read = rest.get(stream, b"") + data, 0
        for found in _STAMP.finditer(data):
            delays.append((came - int(found[1])) / 1e6)
            read = found.end()
        rest[stream] = data[read:]
    return delays


def main():
    """Do what the lines say."""
    allow_many_files()
    # What was read is kept until it is counted, and has no cycles.
    gc.disable()
    reader = Reader(int(sys.argv[1]))
    for line in sys.stdin:
        count, seconds = map(float, line.split())
        reader.open_until(count)
        reader.read_until(time.monotonic() + SETTLE_S)
        print("counting", flush=True)
        seen = reader.read_until(time.monotonic() + seconds)
        print("counted", flush=True)
        delays = delays_ms(seen)
        print(json.dumps({"events": len(delays), **summary(delays)}), flush=True)


if __name__ == "__main__":
    main()

"""The first requests of a worker that has just begun to serve, beside what one takes later.

Either the router has just been started, or its worker has been killed and the master has started
another one. A connection made before that waits until the worker accepts it: then the worker
serves. From that moment one request follows another on this connection; nobody has asked before.
"""

import dataclasses
import os
import pathlib
import signal
import socket
import statistics
import time

from tests.bench.processes import beside, router, upstream
from tests.bench.report import Chart, Findings, Table
from tests.bench.wrk import Load, exchange
from tests.support.router import DEADLINE_S

STARTS, FIRST_S, STEADY_FROM_S, UNTIL_S, LOOK_EVERY_S = 7, 0.1, 1.0, 2.0, 0.0005
WORKERS, KINDS = ("of a new router", "that replaces another"), {
    "direct": "plain", "alias": "chutesai/AutoPilot"}
_LISTENING = "0A"


@dataclasses.dataclass(frozen=True)
class Request:
    """One request: when it was sent, in seconds since the worker serves, and what came of it."""

    sent_s: float
    took_ms: float
    status: int


@dataclasses.dataclass(frozen=True)
class Moments:
    """What the requests of one start took, in ms; medians where it is more than one.

    rest     what was sent in the first 100 ms after the tenth
    worst    of those sent in the first 100 ms after the first one
    steady   what was sent after a second
    refused  how many of the first 100 ms got no 200
    """

    first: float
    second: float
    third_to_tenth: float
    rest: float
    worst: float
    steady: float
    refused: int

    @classmethod
    def of(cls, requests):
        """Return the moments of the requests of one start, in their order."""
        early = [one for one in requests if one.sent_s < FIRST_S]
        took = [one.took_ms for one in early]
        return cls(took[0], took[1], statistics.median(took[2:10]), statistics.median(took[10:]),
                   max(took[1:]), statistics.median(
                       one.took_ms for one in requests if one.sent_s >= STEADY_FROM_S),
                   sum(one.status != 200 for one in early))


def waiting(port):
    """Return how many connections to a port nobody has accepted yet."""
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == _LISTENING and int(local.split(":")[1], 16) == port:
            # Of a listener the kernel shows here how many wait.
            return int(queues.split(":")[1], 16)
    raise AssertionError(f"nobody listens at {port}")


def soon(true):
    """Ask again and again until the answer is yes, and leave the core to others in between."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(LOOK_EVERY_S)


def listens(port):
    """Say whether a connection can be made."""
    with socket.socket() as sock:
        return not sock.connect_ex(("127.0.0.1", port))


def asked(port, body):
    """Send requests from the moment a worker serves; return the Requests."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
        soon(lambda: not waiting(port))
        seen, serves = [], time.perf_counter()
        while (sent_s := time.perf_counter() - serves) < UNTIL_S:
            answer = exchange(sock, body)
            took_s = time.perf_counter() - serves - sent_s
            seen.append(Request(sent_s, took_s * 1000, int(answer[9:12])))
    return seen


def started(backend, model):
    """Start a router, then kill its worker; return the Moments of the worker and of the next."""
    with beside(), router(backend, ready_path=None) as ours:
        body = Load(ours, model).body()
        soon(lambda: listens(ours.port))
        first, [_, worker] = asked(ours.port, body), ours.pids()
        os.kill(worker, signal.SIGKILL)
        soon(lambda: worker not in ours.pids())
        return Moments.of(first), Moments.of(asked(ours.port, body))


def measure():
    """Measure the first requests of fresh workers."""
    seen = {(worker, kind): [] for worker in WORKERS for kind in KINDS}
    with upstream() as backend:
        for _ in range(STARTS):
            for kind, model in KINDS.items():
                for worker, moments in zip(WORKERS, started(backend, model)):
                    seen[worker, kind].append(moments)
    rows, bars = [], {}
    for (worker, kind), starts in seen.items():
        each = dict(zip(vars(starts[0]), zip(*(vars(one).values() for one in starts))))
        refused = each.pop("refused")
        rows.append([f"{kind}, a worker {worker}", *(
            f"{statistics.median(ms):.2f} ({max(ms):.2f})" for ms in each.values()),
            f"{statistics.median(refused):.0f} ({max(refused)})"])
        bars |= {f"router, {kind}, {what}, {worker}": statistics.median(each[what])
                 for what in ("first", "steady")}
    note = (f"One request at a time. The median of {STARTS} starts, and the worst. A new router "
            "has no feeds in its first moments: an alias is refused until it has, and `/readyz` "
            "says so. A worker that replaces another takes what that one has fetched.")
    return Findings([], [Table("First moments", (
        "ms", "first request", "second", "third to tenth", "rest of 100 ms",
        "worst after the first", "after a second", "refused"), rows, note)],
        [Chart("The first request of a worker, ms", bars, 2)])

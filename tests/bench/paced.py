"""What an event costs that comes by itself, as a model's tokens do.

Streams of 25 events a second each: so many at a time, and more and more until one core is full.
"""

import contextlib
import dataclasses
import functools
import json
import math
import subprocess
import sys
import time

from tests.bench.open_streams import ROOM
from tests.bench.processes import LOAD_CORES, router, started, stop, upstream
from tests.bench.report import Chart, Findings, Table, Target
from tests.bench.tokens import APART_S
from tests.bench.wrk import Rate, Ratio, in_turn

COUNTS, ROUNDS, ROUND_S = (100, 400, 1_600), 3, 3
# The search for the most: a tenth more streams each time.
STEP, STEP_S = 1.1, 2
MOST_WAIT_MS = APART_S * 1000 / 2
# At this many streams the servers' processor times are compared.
BESIDE = COUNTS[1]
LEAST_A_SECOND, MOST_LATER_MS, MOST_DEARER = 25_000, (0.3, 2), 1.5
DIRECT, MOST, HALF = "upstream and client alone", "the most", "half of that"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paced(Rate):
    """A Rate whose answers are events.

    streams  that were open
    median, p99  how long an event took from upstream to client, ms
    kb       the server's memory meanwhile
    """

    streams: int
    median: float
    p99: float
    kb: float

    @property
    def kept_up(self):
        """Say whether every stream had its turn before its next event was due.

        With a core full a server goes from stream to stream, and an event waits for half a round
        at the median. A round longer than 40 ms finds two events at a time, which is cheaper and
        not what is measured. The 99 % would tell the same, and every hiccup of the machine.
        """
        return (self.answers >= 0.99 * self.streams / APART_S
                and self.median < MOST_WAIT_MS)


@contextlib.contextmanager
def reader(server):
    """Run a client; yield what has it hold so many streams and returns what came of it."""
    process = started([sys.executable, "-m", "tests.bench.tokens", str(server.port)], LOAD_CORES,
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hold(streams, seconds=ROUND_S):
        print(streams, seconds, file=process.stdin, flush=True)
        assert process.stdout.readline() == "counting\n"
        spent_s, since = server.processor_s(), time.monotonic()
        assert process.stdout.readline() == "counted\n"
        busy = (server.processor_s() - spent_s) / (time.monotonic() - since)
        kb = sum(server.memory_kb("Anonymous"))
        seen = json.loads(process.stdout.readline())
        rate = seen["events"] / seconds
        return Paced(answers=rate, cost_s=busy / rate, busy=busy, streams=streams,
                     median=seen["median"], p99=seen["p99"], kb=kb)

    with process.stdin, process.stdout:
        try:
            yield hold
        finally:
            stop(process)


def held(server, streams):
    """Hold streams with a client of their own."""
    with reader(server) as hold:
        return hold(streams)


def most(server, kept):
    """Add streams to those that a server has kept up with until twice it no longer does."""
    with reader(server) as hold:
        while True:
            streams = math.ceil(kept.streams * STEP)
            # Once may have been the machine.
            tries = (hold(streams, STEP_S) for _ in range(2))
            more = next((one for one in tries if one.kept_up), None)
            if more is None:
                return kept
            kept = more


@dataclasses.dataclass(frozen=True)
class Line:
    """What was seen of a server, and of the upstream alone in the same rounds."""

    seen: Paced
    alone: Paced | None = None

    @property
    def added(self):
        """Return how much later than without the server an event is: median and 99 %, ms."""
        return [getattr(self.seen, which) - getattr(self.alone, which)
                for which in ("median", "p99")]


def in_rounds(servers, streams):
    """Hold so many streams on each server in turn; return name -> Line."""
    found = in_turn({name: functools.partial(held, server, streams)
                     for name, server in servers.items()}, ROUNDS)
    return {name: Line(one, found[DIRECT]) for name, one in found.items()}


def measured(servers):
    """Return (name, how many or what) -> Line, where the server kept up."""
    lines, able = {}, servers
    for streams in COUNTS:
        found = in_rounds(able, streams)
        lines |= {(name, streams): line for name, line in found.items() if line.seen.kept_up}
        able = {name: server for name, server in able.items()
                if name == DIRECT or found[name].seen.kept_up}
    for name, server in servers.items():
        kept = [lines[name, streams].seen for streams in COUNTS if (name, streams) in lines]
        assert kept, f"{name} is too slow for {COUNTS[0]} streams"
        lines[name, MOST] = Line(most(server, kept[-1]))
        if name != DIRECT:
            half = in_rounds({DIRECT: servers[DIRECT], name: server},
                             lines[name, MOST].seen.streams // 2)
            lines[name, HALF] = half[name]
    return lines


def row(name, what, line, at_rest_kb):
    """Return a line of the table."""
    one, added, each_kb = line.seen, ["", ""], ""
    if name != DIRECT and line.alone:
        added = [f"{ms:.2f}" for ms in line.added]
    if name != DIRECT and what in COUNTS:
        # Later it would be what the search has left behind.
        each_kb = f"{(one.kb - at_rest_kb[name]) / one.streams:.1f}"
    return [name if what in COUNTS else f"{name}, {what}", f"{one.streams:,.0f}",
            f"{one.answers:,.0f}", f"{one.busy:.2f}", f"{one.cost_s * 1e6:.1f}",
            f"{one.median:.2f}", f"{one.p99:.2f}", *added, each_kb]


HEAD = ("one core a server", "streams", "events/s", "cores used", "processor µs/event",
        "delay, median, ms", "99 %", "added, median", "99 %", "KB a stream")
NOTE = ("Each stream has 25 events a second, each written by itself and at its own time. *The "
        f"most*: with a tenth more streams half of the events took longer than {MOST_WAIT_MS:.0f} "
        "ms, half the time to the next one, or did not come; a number of streams that went so has "
        "no line. Where *the most* uses much less than a core, the machine had other things to do. "
        "Memory is what a server's processes have for themselves, less that at rest.")


def compared(backend, servers):
    """Measure these servers and the upstream alone; return Findings and (name, what) -> Line."""
    at_rest_kb = {name: sum(server.memory_kb("Anonymous")) for name, server in servers.items()}
    lines = measured({DIRECT: backend, **servers})
    rows = [row(name, what, lines[name, what], at_rest_kb) for name in (*servers, DIRECT)
            for what in (*COUNTS, MOST, HALF) if (name, what) in lines]
    return Findings([], [Table("Paced events", HEAD, rows, NOTE)], [
        Chart(f"Processor time of a paced event, {BESIDE} streams, µs", {
            name: lines[name, BESIDE].seen.cost_s * 1e6 for name in servers
            if (name, BESIDE) in lines}, 1),
        Chart("Paced events a second, one core full", {
            name: lines[name, MOST].seen.answers for name in servers})]), lines


def measure():
    """Measure paced events of the router alone."""
    with upstream() as backend, router(backend, **ROOM) as ours:
        time.sleep(1)
        findings, lines = compared(backend, {"router": ours})
    most_s, later = lines["router", MOST].seen.answers, lines["router", HALF].added
    findings.targets += [
        Target(f"paced events until one core is full: at least {LEAST_A_SECOND:,} a second",
               f"{most_s:,.0f}", most_s >= LEAST_A_SECOND),
        Target("added to a paced event at half of that: at most {} ms at the median, {} at 99 %"
               .format(*MOST_LATER_MS), "{:.2f} and {:.2f} ms".format(*later),
               all(ms <= most_ms for ms, most_ms in zip(later, MOST_LATER_MS)))]
    return findings


def beside_peers(backend, servers):
    """Measure paced events of the router and its peers, which must have been idle before."""
    findings, lines = compared(backend, servers)
    if all((name, BESIDE) in lines for name in ("router", "vllm-router")):
        times = Ratio.of(lines["router", BESIDE].seen, lines["vllm-router", BESIDE].seen, "cost_s")
        findings.targets.append(Target(
            f"paced events, {BESIDE} streams: at most {MOST_DEARER} times vllm-router's processor "
            "time", f"{times} times", times.median <= MOST_DEARER))
    return findings

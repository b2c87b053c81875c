"""Time to the first byte and delay of each event, beside the same load sent directly.

An open loop of paced streams at parts of the router's capacity for them, which wrk tells.
"""

import json
import os
import statistics
import subprocess
import sys

from tests.bench.processes import LOAD_CORES, router, upstream
from tests.bench.report import Chart, Findings, Table
from tests.bench.upstream import PACED_EVENTS, PACED_S
from tests.bench.wrk import Load, interleaved
from tests.support.router import ROOT

PARTS, ROUNDS, ROUND_S = {"a tenth": 0.1, "a half": 0.5, "nine tenths": 0.9}, 3, 5
# Enough for streams of two tenths of a second to saturate any server measured here.
MANY = 500
WHATS = {"first byte": "first_ms", "event": "delay_ms"}


def arrivals(port, rate, seconds):
    """Run the open loop in a process of its own; return what it saw."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.open_loop", "arrive", str(port), str(rate),
         str(seconds)], cwd=ROOT, check=True, capture_output=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, LOAD_CORES))
    seen = json.loads(done.stdout)
    assert not seen["unfinished"], seen
    return seen


def seen_at(servers, rate, seconds=ROUND_S):
    """Return name -> (what, which) -> median over interleaved rounds at one rate, ms."""
    rounds_of = {name: [] for name in servers}
    for _ in range(ROUNDS):
        for name, server in servers.items():
            rounds_of[name].append(arrivals(server.port, rate, seconds))
    return {name: {(what, which): statistics.median(seen[key][which] for seen in many)
                   for what, key in WHATS.items() for which in ("median", "p99", "worst")}
            for name, many in rounds_of.items()}


def capacity(server, connections=MANY):
    """Return how many paced streams a second a server can carry."""
    load = Load(server, "paced", events=PACED_EVENTS, connections=connections)
    return interleaved({"paced": load}, 3)["paced"].answers


def measure():
    """Measure 3."""
    rows, bars = [], {}
    with upstream() as backend, router(backend) as ours:
        most = capacity(ours)
        for part, share in PARTS.items():
            seen = seen_at({"direct": backend, "router": ours}, share * most)
            for what in WHATS:
                added = {which: seen["router"][what, which] - seen["direct"][what, which]
                         for which in ("median", "p99")}
                bars[f"router, {what}, median, {part}"] = added["median"]
                rows.append([f"{what}, {part} ({share * most:,.0f}/s)", *(
                    f"{seen[name][what, which]:.2f}" for name in ("direct", "router")
                    for which in ("median", "p99")), *(f"{ms:.2f}" for ms in added.values())])
    note = (f"Streams of {PACED_EVENTS} events {PACED_S * 1000:.0f} ms apart, Poisson arrivals; "
            f"capacity {most:,.0f} of them a second. The first byte counts from when its request "
            "was due, an event from when the upstream sent it.")
    head = ("ms", "direct, median", "99 %", "router, median", "99 %", "added, median", "99 %")
    return Findings([], [Table("Delay", head, rows, note)],
                    [Chart("Delay added at parts of capacity, ms", bars, 2)])

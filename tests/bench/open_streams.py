"""Many open streams in one worker, an event a second each: memory, gaps, and what is lost."""

import json
import subprocess
import sys
import time

from tests.bench.processes import LOAD_CORES, router, started, stop, upstream
from tests.bench.report import Chart, Findings, Table, Target

COUNTS, HOLD_S = (100, 1_000, 5_000), 10
MOST_KB, MOST_LATER_MS = 30, 20
ROOM = {"WORKER_CONNECTIONS": "6000"}


def hold(server, count):
    """Hold streams open on a server; return what the client saw, and the worker's KB with them."""
    process = started([sys.executable, "-m", "tests.bench.open_loop", "hold", str(server.port),
                       str(count), str(HOLD_S)], LOAD_CORES, stdout=subprocess.PIPE, text=True)
    with process.stdout:
        try:
            assert process.stdout.readline() == "holding\n"
            spent_s, since = server.processor_s(), time.monotonic()
            time.sleep(HOLD_S / 2)
            busy = (server.processor_s() - spent_s) / (time.monotonic() - since)
            memory = sum(server.memory_kb("Anonymous")[1:])
            return json.loads(process.stdout.readline()), memory, busy
        finally:
            stop(process)


def measured(backend, count):
    """Measure one number of streams, on a fresh router; return the row and what it is about."""
    with router(backend, **ROOM) as ours:
        time.sleep(1)
        at_rest = sum(ours.memory_kb("Anonymous")[1:])
        seen, memory, busy = hold(ours, count)
    direct, _, _ = hold(backend, count)
    each_kb = (memory - at_rest) / count
    later_ms = seen["gaps_ms"]["p99"] - direct["gaps_ms"]["p99"]
    row = [f"{count:,}", f"{each_kb:.1f}", f"{busy:.2f}",
           *(f"{one['gaps_ms'][which]:,.0f}" for one in (direct, seen)
             for which in ("p99", "worst")), seen["events"], seen["lost"] + seen["ended"]]
    return row, each_kb, later_ms, seen


def measure():
    """Measure 4."""
    rows, memory = [], {}
    with upstream() as backend:
        for count in COUNTS:
            row, each_kb, later_ms, seen = measured(backend, count)
            rows.append(row)
            memory[f"router, {count:,} streams"] = each_kb
    lost, refused = seen["lost"] + seen["ended"], seen["refused"]
    head = ("open streams", "KB a stream", "cores used", "direct: 99 % of gaps within, ms",
            "worst", "router: 99 % within, ms", "worst", "events", "lost")
    note = (f"An event a second in each stream, {HOLD_S} s long. Memory is what the worker has "
            "for itself with the streams open, less that at rest.")
    return Findings(
        [Target(f"at most {MOST_KB} KB a stream at 5,000 streams", f"{each_kb:.1f} KB",
                each_kb <= MOST_KB),
         Target("5,000 streams at an event a second: none lost", f"{lost} of {seen['events']:,}"
                + (f"; streams refused, by status: {refused}" if refused else ""),
                lost == 0),
         Target(f"99 % of gaps within {MOST_LATER_MS} ms of what the client sees directly",
                f"{later_ms:.1f} ms", later_ms <= MOST_LATER_MS)],
        [Table("Open streams", head, rows, note)],
        [Chart("Memory of an open stream, KB", memory, 1)])

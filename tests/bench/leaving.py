"""Thousands of clients that leave at once: when the upstream is rid of their streams, and how long
a probe waits meanwhile.

A process holds the streams, with an event a second in each. Then it is killed, and the system
closes its sockets, all of them within a tenth of a second.
"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time

from tests.bench.open_streams import ROOM
from tests.bench.processes import LOAD_CORES, beside, router, started, stop, upstream
from tests.bench.report import Chart, Findings, Table, Target
from tests.support.router import DEADLINE_S, free_port

COUNT, ROUNDS, AROUND_S, LOOK_EVERY_S, PROBE_EVERY_S = 5_000, 3, 1.0, 0.02, 0.002
MOST_S, MOST_PROBE_MS = 2, 250
MAIN, HEALTH = "the clients' address", "the health address"


@dataclasses.dataclass(frozen=True)
class Parting:
    """What came of it when the clients of a server left.

    rid_s   from the kill until the upstream saw the last stream end
    core_s  processor time of the server from the kill until a second after that end
    worst_ms  address -> the longest time of /healthz in the second before the kill, and since
    """

    rid_s: float
    core_s: float
    worst_ms: dict


def asked(connection, path):
    """Send a GET and return the body of its answer."""
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    return answer.read()


def probe(port, over):
    """Ask for /healthz until told to end; return when each began and was over, ns."""
    connection, seen = http.client.HTTPConnection("127.0.0.1", port, DEADLINE_S), []
    with contextlib.closing(connection):
        while not over.wait(PROBE_EVERY_S):
            began = time.monotonic_ns()
            asked(connection, "/healthz")
            seen.append((began, time.monotonic_ns()))
    return seen


@contextlib.contextmanager
def probed(doors):
    """Probe each address, each on a connection of its own; yield what `probe` returns of each.

    doors   name of an address -> its port
    Yields  a dict by name, which fills at the end
    """
    over, seen = threading.Event(), {}
    with concurrent.futures.ThreadPoolExecutor(len(doors)) as pool:
        running = {name: pool.submit(probe, port, over) for name, port in doors.items()}
        try:
            yield seen
        finally:
            over.set()
        seen |= {name: each.result() for name, each in running.items()}


def longest_ms(probes, since):
    """Return the longest probe that was over before a time, and the longest other one, ms."""
    return [max((ended - began) / 1e6 for began, ended in probes if (ended < since) is before)
            for before in (True, False)]


def endless(ask):
    """Return what the upstream says of its endless streams, asked on a connection."""
    return json.loads(asked(ask, "/endless"))


def wait_until_rid(ask):
    """Wait until the upstream has no stream; return when it saw the last one end, ns."""
    give_up_at = time.monotonic() + DEADLINE_S
    while (seen := endless(ask))["open"]:
        assert time.monotonic() < give_up_at, seen
        time.sleep(LOOK_EVERY_S)
    return seen["ended_ns"]


def left(server, backend, doors):
    """Hold streams on a server, and leave; return the Parting."""
    holder = started([sys.executable, "-m", "tests.bench.open_loop", "hold", str(server.port),
                      str(COUNT), "600"], LOAD_CORES, stdout=subprocess.PIPE, text=True)
    ask = http.client.HTTPConnection("127.0.0.1", backend.port, DEADLINE_S)
    with contextlib.closing(ask), holder.stdout, beside():
        try:
            assert holder.stdout.readline() == "holding\n"
            assert endless(ask)["open"] == COUNT, endless(ask)
            with probed(doors) as probes:
                time.sleep(AROUND_S)
                spent_s, since = server.processor_s(), time.monotonic_ns()
                holder.kill()
                rid_ns = wait_until_rid(ask) - since
                # What is left to do after the last may hold others up as well.
                time.sleep(AROUND_S)
                core_s = server.processor_s() - spent_s
        finally:
            stop(holder)
    return Parting(rid_ns / 1e9, core_s,
                   {door: longest_ms(seen, since) for door, seen in probes.items()})


def row(name, partings):
    """Return a line of the table; of several rounds the processor time is the median."""
    def worst(of):
        return max(map(of, partings))
    return [name, f"{worst(lambda one: one.rid_s):.2f}",
            f"{statistics.median(one.core_s for one in partings):.2f}",
            *(f"{worst(lambda one: one.worst_ms[door][when]):.0f}"
              if door in partings[0].worst_ms else ""
              for door in (MAIN, HEALTH) for when in (0, 1))]


def measure():
    """Measure how the clients of a worker leave."""
    health = free_port()
    with upstream() as backend, router(
            backend, **ROOM, HEALTH_LISTEN_ADDR=f"127.0.0.1:{health}") as ours:
        doors = {MAIN: ours.port, HEALTH: health}
        seen = [left(ours, backend, doors) for _ in range(ROUNDS)]
        alone = left(backend, backend, {MAIN: backend.port})
    rid_s = [one.rid_s for one in seen]
    worst_ms = {door: max(one.worst_ms[door][1] for one in seen) for door in doors}
    head = (f"{COUNT:,} clients leave", "upstream rid of all after, s", "processor s",
            "`/healthz`, before, ms", "meanwhile", "health address, before, ms", "meanwhile")
    note = (f"The worst of {ROUNDS} rounds; of processor times, which go on until a second after "
            "the last stream's end, the median. The upstream alone is told of the same parting by "
            "its clients themselves. Each address is asked for `/healthz` all the time on one "
            "connection.")
    return Findings(
        [Target(f"{COUNT:,} clients leave at once: the last upstream connection closed within "
                f"{MOST_S} s", f"{statistics.median(rid_s):.2f} s, {max(rid_s):.2f} in the worst "
                "round", max(rid_s) <= MOST_S),
         Target(f"worst `/healthz` meanwhile within {MOST_PROBE_MS} ms",
                " and ".join(f"{ms:.0f} ms at {door}" for door, ms in worst_ms.items()),
                max(worst_ms.values()) <= MOST_PROBE_MS)],
        [Table("Clients that leave", head, [row("router", seen), row("upstream alone", [alone])],
               note)],
        [Chart(f"Worst /healthz while {COUNT:,} clients leave, ms", {
            f"router, {door}": ms for door, ms in worst_ms.items()})])

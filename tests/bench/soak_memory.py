"""Shared memory that is filled, and then removed, beside good traffic; a phase of `make soak`.

Clients ask for ever other models, so that there are labels that have not been counted before, and
probes come all the time. While all room is taken a worker is killed: it is replaced, and only what
it had in flight may be lost.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import signal
import threading
import time

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router
from tests.support.upstream import Upstream

CLIENTS = 4
NAMES = [f"maker/Soak-{number}" for number in range(3000)]


@dataclasses.dataclass
class Seen:
    """What clients and probes saw."""

    good: int = 0
    lost: int = 0
    longest_probe_s: float = 0.0
    probes: int = 0
    failed_probes: int = 0

    @property
    def bad(self):
        """Return how many promises were broken: a killed worker may lose what it had in flight."""
        return max(0, self.lost - CLIENTS) + max(0, self.failed_probes - 1)


def _ask(router, seen, over, names):
    for name in itertools.cycle(names):
        if over.is_set():
            return
        try:
            answer = router.chat(name)
            good = answer.status == 200 and answer.ended == "complete"
        except OSError:
            good = False
        # One thread's own count: nobody else adds to it.
        seen.good += good
        seen.lost += not good


def _probe(router, seen, over):
    while not over.wait(0.02):
        started = time.monotonic()
        try:
            worked = router.get("/healthz").status == 200
        except OSError:
            worked = False
        seen.longest_probe_s = max(seen.longest_probe_s, time.monotonic() - started)
        seen.probes += 1
        seen.failed_probes += not worked


def _fill(folder):
    """Take all room there is; return the file to remove."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return filler


def _ready(router):
    return sum(line["message"] == "worker ready" for line in router.lines)


def filled(seconds, report=print):
    """Run the phase; return how many promises were broken.

    seconds  of traffic while there is no room
    report   takes lines of text
    """
    feed = models_feed(NAMES)
    with Upstream(feed, [utilization_row(name) for name in NAMES]) as upstream:
        router = Router(upstream.url, WEB_CONCURRENCY="2")
        router.command = ["unshare", "--mount", "sh", "-c",
                          'mount -t tmpfs -o size=48m tmpfs /dev/shm && exec "$@"', "sh",
                          *router.command]
        with router:
            router.wait_until_fed()
            return _filled(router, seconds, report)


def _filled(router, seconds, report):
    shared = pathlib.Path(f"/proc/{router.process.pid}/root/dev/shm")
    over, seen = threading.Event(), [Seen() for _ in range(CLIENTS + 1)]
    threads = [threading.Thread(target=_ask, args=(router, mine, over, NAMES[n::CLIENTS]))
               for n, mine in enumerate(seen[:CLIENTS])]
    threads.append(threading.Thread(target=_probe, args=(router, seen[-1], over)))
    for thread in threads:
        thread.start()
    try:
        filler = _fill(shared)
        over.wait(seconds)
        [worker, *_] = [line["pid"] for line in router.lines if line["message"] == "worker ready"]
        before, killed_at = _ready(router), time.monotonic()
        os.kill(worker, signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", before + 1)
        whole_after_s = time.monotonic() - killed_at
        over.wait(seconds)
        filler.unlink()
        removed_at = time.monotonic()
        shutil.rmtree(next(shared.glob("chutes-router-*")))
        router.wait_for_lines(lambda line: line["message"].startswith("the directory that"))
        anew_after_s = time.monotonic() - removed_at
        assert router.get("/metrics").status == 200
        over.wait(seconds)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    total = Seen(*(sum(getattr(one, field.name) for one in seen)
                   for field in dataclasses.fields(Seen)))
    report(f"shared memory filled: {total.good} good answers, {total.lost} lost with a killed "
           f"worker (at most {CLIENTS}); all workers again after {whole_after_s:.1f} s")
    report(f"shared memory removed: made anew after {anew_after_s:.1f} s")
    report(f"{total.probes} probes, {total.failed_probes} failed, longest "
           f"{total.longest_probe_s * 1000:.0f} ms")
    return total.bad

"""Faults of the network under load: connections that die unseen, a name that moves, no resolver.

`make soak` runs them after the streams; a short run is part of the tests. Clients ask without a
pause and each looks at its answer. A request that was under way when the fault came may be lost, no
other. Everything stays on loopback; the probe gives the router its resolver.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import tempfile
import threading
import time

from tests.support.feeds import models_feed, public_names, utilization_feed
from tests.support.router import Router
from tests.support.upstream import Upstream, chat_completion, complete, swallow
from tests.wire.conftest import LISTED

CLIENTS = 8
PROBE_EVERY_S = 0.05
# An answer takes a few milliseconds; one that took this long has met the fault.
SLOW_S = 0.5
SETTINGS = {
    "WEB_CONCURRENCY": "2", "UPSTREAM_HEADER_TIMEOUT_MS": "2000", "MODELS_REFRESH_MS": "3600000",
    "UTILIZATION_REFRESH_MS": "3600000", "READYZ_MAX_SNAPSHOT_AGE_MS": "3600000",
    "READYZ_MAX_ALLOWLIST_AGE_MS": "3600000", "LOG_LEVEL": "debug"}
ANSWER = chat_completion("m", "yes")
DIRECT, LIST = LISTED, ",".join(public_names()[:3])


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request; times in seconds on the monotonic clock."""

    began: float
    ended: float
    good: bool


class Rig:
    """A router whose backend has a name, and clients.

    asked   the requests of the current phase
    probed  how long each probe took, in seconds
    """

    def __init__(self, folder):
        self._names = folder / "names"
        self._stack = contextlib.ExitStack()
        self.backend = self._serve("127.0.0.2", 0)
        self.point_at("127.0.0.2")
        self.asked, self.probed = [], []
        self._stop = threading.Event()

    def _serve(self, host, port):
        backend = self._stack.enter_context(Upstream(
            models_feed([LISTED, *public_names()]), utilization_feed(), host=host, port=port))
        backend.otherwise(complete(ANSWER))
        return backend

    def point_at(self, *hosts):
        """Let the backend's name have these addresses; none: the resolver is silent."""
        new = self._names.with_suffix(".new")
        new.write_text(json.dumps({"backend.test": hosts}))
        os.replace(new, self._names)

    def swallow(self):
        """Let every connection there is vanish."""
        self.backend.swallow()
        return time.monotonic()

    def move_to(self, host):
        """Serve at another address, and refuse connections at the old one."""
        old, self.backend = self.backend, self._serve(host, self.backend.port)
        self.point_at(host)
        old.stop_listening()
        old.drop_idle()
        return time.monotonic()

    def vanish_to(self, host):
        """Serve at another address, while the old one drops every packet."""
        old, self.backend = self.backend, self._serve(host, self.backend.port)
        self.point_at(host)
        old.swallow()
        old.stop_listening()
        hole = socket.create_server((old.host, old.port))
        swallow(self._stack.enter_context(hole))
        return time.monotonic()

    def __enter__(self):
        self.router = self._stack.enter_context(Router(
            f"http://backend.test:{self.backend.port}", NAMES=str(self._names), **SETTINGS))
        self.router.wait_until_fed()
        return self

    def __exit__(self, *_):
        self._stack.close()

    @contextlib.contextmanager
    def load(self, model):
        """Let clients ask for a model all the time."""
        self.asked, self.probed = [], []
        self._stop.clear()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS + 1) as pool:
            running = [pool.submit(self._ask, model) for _ in range(CLIENTS)]
            running.append(pool.submit(self._probe))
            try:
                yield
            finally:
                self._stop.set()
            for client in running:
                client.result()

    def _ask(self, model):
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answer = self.router.chat(model)
                good = (answer.status, answer.ended) == (200, "complete")
            except OSError:
                good = False
            self.asked.append(Asked(began, time.monotonic(), good))

    def _probe(self):
        while not self._stop.wait(PROBE_EVERY_S):
            began = time.monotonic()
            assert self.router.get("/healthz").status == 200
            self.probed.append(time.monotonic() - began)


def silence(rig, seconds):
    """Have nobody answer look-ups, while each request needs a connection of its own."""
    rig.backend.otherwise(complete(ANSWER, fields=[("Connection", "close")]))
    rig.point_at()
    silent_from = time.monotonic()
    time.sleep(seconds)
    rig.point_at("127.0.0.4")
    return silent_from


# Name -> what is asked for, and the fault; a fault gets the rig and how long it is to last, and
# returns when it had wholly come: a connection opened while it came may have met it.
PHASES = {
    "pooled connections dropped unseen": (LIST, lambda rig, _: rig.swallow()),
    "a name that moves, the old address refuses": (
        DIRECT, lambda rig, _: rig.move_to("127.0.0.3")),
    "a name that moves, the old address drops packets": (
        LIST, lambda rig, _: rig.vanish_to("127.0.0.4")),
    "a resolver that is silent": (DIRECT, silence),
}


def run(calm_s, silent_s, report=print):
    """Run every phase; return how many requests were lost that the fault did not find under way.

    calm_s    seconds of load before and after each fault
    silent_s  how long the resolver is silent
    report    takes lines of text
    """
    lost = 0
    with tempfile.TemporaryDirectory() as folder, Rig(pathlib.Path(folder)) as rig:
        for name, (model, fault) in PHASES.items():
            with rig.load(model):
                time.sleep(calm_s)
                at = time.monotonic()
                came = fault(rig, silent_s)
                time.sleep(calm_s)
            lost += _tell(name, rig, at, came, report)
    return lost


def _tell(name, rig, at, came, report):
    bad = [request for request in rig.asked if not request.good]
    lost = [request for request in bad if request.began >= came or request.ended < at]
    met = [request.ended - at for request in rig.asked if request.ended >= at
           and (not request.good or request.ended - request.began > SLOW_S)]
    report(f"{name}: {len(rig.asked)} requests, {len(bad) - len(lost)} lost that were under way, "
           f"{len(lost)} others; recovered after {max(met, default=0):.1f} s; "
           f"slowest probe {max(rig.probed) * 1000:.0f} ms")
    return len(lost)

"""How a worker ends, step by step, on a clock of the test's own."""

import subprocess
import sys

import pytest

from app.draining import Address, Drain
from app.inflight import InFlight


CHAT = "a greenlet that serves a chat completion"


class Connection:
    """What a drain sees of a client's connection."""

    def __init__(self, *, served_by=None, idle_since=None):
        self.served_by, self.idle_since = served_by, idle_since
        self.ended = ""

    def close_if_idle(self):
        self.ended = "closed"

    def hang_up(self):
        self.ended = "hung up"


class Server:
    closed = False

    def close(self):
        assert not self.closed
        self.closed = True


class Requests(InFlight):
    """Counts cuts instead of throwing; a chat completion is served by CHAT."""

    cuts = 0

    def __contains__(self, serving):
        return serving == CHAT

    def cut(self):
        self.cuts += 1


class Draining:
    """A drain over given connections, begun at 100 s with 20 s of grace."""

    def __init__(self, *connections, probes=(), grace_s=20.0):
        self.now, self.connections, self.probes = 100.0, set(connections), set(probes)
        self.service, self.probed, self.in_flight = Server(), Server(), Requests(9, 9)
        self.drain = Drain(self.in_flight, Address(self.service, self.connections),
                           Address(self.probed, self.probes), grace_s, lambda: self.now)

    def step_at(self, seconds):
        self.now = 100.0 + seconds
        return self.drain.step()


def test_a_worker_with_nothing_to_do_is_done_at_once():
    """007-R3"""
    it = Draining()
    assert it.in_flight.draining
    assert it.step_at(0) and it.service.closed and it.probed.closed


@pytest.mark.parametrize("grace_s, until_s", [(20.0, 1.0), (1.0, 0.25)])
def test_connections_are_accepted_for_a_second_more_while_something_is_under_way(grace_s, until_s):
    """007-R3"""
    it = Draining(Connection(served_by=CHAT), grace_s=grace_s)
    assert not it.step_at(until_s - 0.1) and not it.service.closed
    assert not it.step_at(until_s) and it.service.closed


def test_the_probes_address_stays_until_all_else_is_over():
    """007-R3"""
    stream = Connection(served_by=CHAT)
    idle, asking = Connection(idle_since=100.0), Connection(served_by="GET")
    it = Draining(stream, probes=[idle, asking])
    assert not it.step_at(15) and not it.probed.closed and not idle.ended
    it.connections.remove(stream)
    assert not it.step_at(16) and it.probed.closed
    assert (idle.ended, asking.ended) == ("closed", "")
    it.probes.clear()
    assert it.step_at(16)


@pytest.mark.parametrize("grace_s, idle_s", [(120.0, 6.0), (20.0, 5.0), (4.0, 1.0)])
def test_a_connection_idle_for_some_seconds_is_ended_and_no_other(grace_s, idle_s):
    """007-R3"""
    idle, fresh = Connection(idle_since=100.0 - idle_s), Connection(idle_since=99.9)
    serving, arriving = Connection(served_by=CHAT), Connection()
    it = Draining(idle, fresh, serving, arriving, grace_s=grace_s)
    it.step_at(0)
    assert [c.ended for c in (idle, fresh, serving, arriving)] == ["closed", "", "", ""]
    it.step_at(idle_s - 0.05)
    assert fresh.ended == "closed" and not serving.ended and not arriving.ended


@pytest.mark.parametrize("grace_s, cut_at", [(20.0, 17.0), (4.0, 2.0), (1.0, 0.5)])
def test_what_would_outlive_the_grace_is_cut_once_before_its_end(grace_s, cut_at):
    """007-R3"""
    serving, arriving, deaf = Connection(served_by=CHAT), Connection(), Connection(served_by="GET")
    it = Draining(serving, arriving, deaf, grace_s=grace_s)
    it.step_at(cut_at - 0.1)
    assert it.in_flight.cuts == 0 and not arriving.ended
    it.step_at(cut_at)
    assert [c.ended for c in (serving, arriving, deaf)] == ["", "hung up", "hung up"]
    # Whoever was cut has a moment to take its refusal.
    it.step_at(cut_at + (grace_s - cut_at) / 3)
    assert it.in_flight.cuts == 1 and serving.ended == "hung up"


def test_the_master_loads_nothing_that_counts_or_opens_sockets():
    """001-R1, 001-R13: its own gauges would be the worst worker's."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import app.worker, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True).stdout.split()
    assert not {"prometheus_client", "requests", "urllib3", "redis", "flask"} & set(loaded)

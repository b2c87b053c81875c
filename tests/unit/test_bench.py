"""The parts of the bench that only reckon: what was seen in, figures out."""

import asyncio
import functools
import json
import math
import os
import socket
import subprocess
import sys
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.bench.__main__
from app.dialing.dialer import Dialer
from app.dialing.names import Names
from app.sticky.redis import RedisStickyStore
from app.sticky.sqlite import SqliteStickyStore
from app.upstream.tls import trusting
from tests.bench.failover import AT_ONCE, GROUP, HANGING, Cost
from tests.bench.first_moments import Moments, Request, waiting
from tests.bench.leaving import longest_ms
from tests.bench.paced import Paced
from tests.bench.processes import Server, upstream
from tests.bench.refresh import rounds
from tests.bench.report import Findings, Target
from tests.bench.sticky import TTL_S, fill_redis, wait_until_connected
from tests.bench.tokens import delays_ms
from tests.bench.upstream import FAILING, FEED_SIZES, MODELS, Fast, event
from tests.bench.wrk import Rate, Ratio, exchange, in_turn
from tests.support.redis_server import RedisServer


@given(st.lists(st.integers(0, 400), max_size=6))
def test_every_event_is_timed_by_the_piece_that_completes_its_stamp(cuts):
    """Event n of stream 5 is sent at n ms, all of it is seen at 9; stream 6 speaks in between."""
    sent = b"".join([b"HTTP/1.1 200 OK\r\n\r\n", *(event(b"@%d.%d@" % (n, n * 10**6))
                                                   for n in range(3))])
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    pieces = [(5, 9 * 10**6, sent[start:end]) for start, end in zip(edges, edges[1:])]
    other = (6, 7 * 10**6, event(b"@0.0@"))
    assert sorted(delays_ms([pieces[0], other, *pieces[1:]])) == [7.0, 7.0, 8.0, 9.0]


def test_the_figures_of_a_run_are_each_round_s_median_by_itself():
    rounds = [Rate(100, 0.5, 0.1, 3), Rate(300, 0.7, 0.3, 3), Rate(200, 0.9, 0.2, 3)]
    assert Rate.of(rounds) == Rate(200, 0.7, 0.2, 3, tuple(rounds))


@pytest.mark.parametrize("figure, says", [
    ("answers", "1.50 (1.00 to 2.00 by round)"), ("cost_s", "0.50 (0.25 to 1.00 by round)")])
def test_a_ratio_is_taken_round_by_round(figure, says):
    one = Rate.of([Rate(100, 1, 1), Rate(400, 2, 1), Rate(150, 1, 1)])
    other = Rate.of([Rate(100, 1, 1), Rate(200, 4, 1), Rate(100, 4, 1)])
    assert str(Ratio.of(one, other, figure)) == says


def test_every_second_round_goes_backwards():
    called = []

    def run(name):
        called.append(name)
        return Rate(len(called), 1, 1)

    seen = in_turn({name: functools.partial(run, name) for name in "abc"}, 3)
    assert "".join(called) == "abccbaabc"
    assert [rate.answers for rate in seen["a"].rounds] == [1, 6, 7]


@pytest.mark.parametrize("events_a_second, median, kept_up", [
    (2_500, 19, True), (2_480, 1, True), (2_400, 1, False), (2_500, 21, False)])
def test_a_server_keeps_up_while_events_come_in_half_the_time_to_the_next(
        events_a_second, median, kept_up):
    """A hundred streams: 2,500 events a second, 40 ms apart in each."""
    assert Paced(answers=events_a_second, cost_s=1, busy=1, streams=100, median=median,
                 p99=99, kb=1).kept_up is kept_up


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self):
        self.written, self.closed = b"", False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


def connected():
    """Return a connection to the scripted upstream, and its transport."""
    connection, wire = Fast(), Wire()
    connection.connection_made(wire)
    return connection, wire


def asking(model):
    """Return a request for a model."""
    body = json.dumps({"model": model, "messages": []}).encode()
    return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def open_and_ended():
    """Return what the scripted upstream says of its endless streams."""
    connection, wire = connected()
    connection.data_received(b"GET /endless HTTP/1.1\r\n\r\n")
    said = json.loads(wire.written.partition(b"\r\n\r\n")[2])
    return said["open"], said["ended_ns"]


@pytest.mark.parametrize("model, answer, closed", [
    ("busy", b"HTTP/1.1 503 ", False), ("gone", b"HTTP/1.1 404 ", False),
    ("lost", b"", True), ("hangs", b"", False), ("plain", b"HTTP/1.1 200 OK\r\n", False)])
def test_the_scripted_upstream_fails_as_it_is_asked_to(model, answer, closed):
    connection, wire = connected()
    connection.data_received(asking(model))
    assert (wire.written[:len(answer)], bool(wire.written), wire.closed) == (
        answer, bool(answer), closed)
    assert model in MODELS


def test_the_scripted_upstream_knows_how_many_endless_streams_are_open_and_when_one_ended():
    async def two_streams_of_which_one_ends():
        one, other = connected()[0], connected()[0]
        for connection in (one, other):
            connection.data_received(asking("endless"))
        both, before = open_and_ended()[0], time.monotonic_ns()
        one.connection_lost(None)
        # One that has no such stream makes no difference.
        connected()[0].connection_lost(None)
        left = open_and_ended()
        other.connection_lost(None)
        return both, left[0], before <= left[1] <= time.monotonic_ns(), open_and_ended()[0]

    assert asyncio.run(two_streams_of_which_one_ends()) == (2, 1, True, 0)


def test_a_probe_that_was_under_way_when_the_clients_left_counts_as_one_of_afterwards():
    ms = 10**6
    assert longest_ms([(0, 3 * ms), (4 * ms, 5 * ms), (6 * ms, 90 * ms), (91 * ms, 92 * ms)],
                      10 * ms) == [3.0, 84.0]


def test_what_a_failure_costs_is_reckoned_in_milliseconds_and_microseconds():
    """A hundred requests of 1 to 100 ms; their groups took 2 ms of the processor, a few 9."""
    cost = Cost.of([(n / 1000, 0.009 if n < 10 else 0.002) for n in range(1, 101)])
    assert (cost.median_ms, cost.group_us) == pytest.approx((50.5, 2000))
    assert 99 <= cost.p99_ms <= 100


def test_a_wait_that_had_to_be_is_not_added_by_failover():
    assert Cost(260, 280, 900).less(Cost(1, 5, 300), 250) == Cost(9, 25, 600)


def test_of_the_requests_so_few_fail_that_failover_has_a_budget_for_them():
    """One in five may: specs/002 R64."""
    assert GROUP >= 5
    assert {model.partition(",")[0] for model in (*AT_ONCE.values(), HANGING)} == set(FAILING)


def test_the_first_moments_are_told_from_what_comes_later():
    early = [Request(n / 1000, 10 - n, 503 if n < 2 else 200) for n in range(10)]
    early += [Request(0.05, 3, 200), Request(0.06, 20, 200), Request(0.099, 4, 200)]
    between, later = [Request(0.1, 50, 503)], [Request(1 + n / 10, n, 200) for n in range(5)]
    assert Moments.of([*early, *between, *later]) == Moments(
        first=10, second=9, third_to_tenth=4.5, rest=4, worst=20, steady=2, refused=2)


def test_a_connection_waits_until_somebody_accepts_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert waiting(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert waiting(port) == 1
            listener.accept()[0].close()
            assert waiting(port) == 0


def test_an_answer_is_read_to_its_end_whatever_it_says():
    pieces = [b"HTTP/1.1 503 Busy\r\nContent-", b"Length: 3\r\n\r\n", b"no!"]
    # Of these sockets each read gives one piece.
    client, server = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with client, server:
        for piece in pieces:
            server.sendall(piece)
        assert exchange(client, b"{}", "sk-7") == b"".join(pieces)
        head, _, body = server.recv(1000).partition(b"\r\n\r\n")
        assert (b"Bearer sk-7\r\n" in head, body) == (True, b"{}")


def test_a_server_s_processor_time_is_what_its_process_says_itself():
    """It is asked between two answers of the process."""
    says = "import time; print(time.process_time(), flush=True); "
    with subprocess.Popen([sys.executable, "-c", f"{says}input(); {says}"], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        before = float(process.stdout.readline())
        counted = Server(0, process).processor_s()
        after = float(process.communicate("\n")[0])
    assert before <= counted <= after


def test_the_measures_that_run_parts_of_the_router_still_can(tmp_path):
    """001-R12: the stores of `sticky`, connected, and the feeds of `refresh`, taken in."""
    with RedisServer() as server:
        store = RedisStickyStore(server.url, trusting(""), Dialer(Names()), TTL_S,
                                 SqliteStickyStore(tmp_path / "a", TTL_S, 9, time.monotonic),
                                 time.monotonic)
        wait_until_connected(store)
        fill_redis(server, 0, ["b"], "some/Model")
        assert store.get("b").model == "some/Model"
        store.close()
    with upstream() as backend:
        assert rounds(backend.port, FEED_SIZES[0])


def test_a_process_that_ends_while_it_is_looked_at_is_none(monkeypatch):
    """A worker that was killed goes while its threads are read."""
    def gone(_):
        raise FileNotFoundError
    monkeypatch.setattr("pathlib.Path.read_text", gone)
    itself = types.SimpleNamespace(pid=os.getpid())
    assert Server(0, itself).pids() == [itself.pid]
    monkeypatch.undo()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert child.pid in Server(0, itself).pids()
    finally:
        child.kill()
        child.wait()


def test_a_measure_that_fails_costs_its_own_figures_only(monkeypatch, capsys):
    """The others have taken twenty minutes."""
    def works():
        return Findings([Target("something", "much", True)])
    for name, measure in (("latency", works), ("paced", lambda: 1 / 0)):
        monkeypatch.setattr(f"tests.bench.{name}.measure", measure)
    monkeypatch.setattr(tests.bench.__main__, "require", lambda *programs: None)
    monkeypatch.setattr(sys, "argv", ["bench", "paced", "latency"])
    with pytest.raises(SystemExit, match="failed: paced"):
        tests.bench.__main__.main()
    shown = capsys.readouterr()
    assert "| something | much | met |" in shown.out and "ZeroDivisionError" in shown.err


def test_a_server_that_has_answered_nobody_is_infinitely_slower():
    """LiteLLM may need longer than a round for a stream of 1,000."""
    ours, none = Rate.of([Rate(8.0, 0.1, 1.0)] * 2), Rate.of([Rate(0.0, math.inf, 1.0)] * 2)
    assert str(Ratio.of(ours, none)) == "inf (inf to inf by round)"
    assert Ratio.of(none, ours).median == 0 and Ratio.of(none, ours, "cost_s").median == math.inf

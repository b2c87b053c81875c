"""What the service asks of gevent's event loop, on real sockets."""

import socket

import gevent
import pytest

from app.eventloop import Arrival, pause, when_idle


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    arrival = Arrival(ours)
    with ours, theirs:
        yield arrival, ours, theirs
        arrival.close()


def after(seconds, function, *arguments):
    return gevent.spawn_later(seconds, function, *arguments)


def test_a_wait_ends_with_the_first_byte_and_the_next_one_with_the_next(pair):
    """006-W5"""
    arrival, ours, theirs = pair
    for byte in (b"a", b"b"):
        after(0.01, theirs.sendall, byte)
        arrival.wait(None)
        assert ours.recv(9) == byte


def test_a_wait_ends_with_the_end_of_the_stream(pair):
    """006-W5"""
    arrival, ours, theirs = pair
    after(0.01, theirs.shutdown, socket.SHUT_RDWR)
    arrival.wait(None)
    assert ours.recv(9) == b""


def test_a_wait_has_its_own_time_whatever_the_waits_before_it_had(pair):
    """006-W2: a timer that is left from another wait ends none."""
    arrival, ours, theirs = pair
    for others_s in (0.02, 1.0):
        theirs.sendall(b"a")
        arrival.wait(others_s)
        assert ours.recv(9) == b"a"
        after(0.06, theirs.sendall, b"b")
        arrival.wait(None)
        assert ours.recv(9) == b"b"
        with pytest.raises(TimeoutError), gevent.Timeout(0.5):
            arrival.wait(0.04)


def test_a_wait_that_begins_late_lasts_as_long_as_any(pair):
    """006-W2"""
    arrival, ours, theirs = pair
    theirs.sendall(b"a")
    arrival.wait(0.1)
    assert ours.recv(9) == b"a"
    gevent.sleep(0.06)
    after(0.08, theirs.sendall, b"b")
    arrival.wait(0.1)
    assert ours.recv(9) == b"b"


def test_what_is_thrown_into_a_wait_ends_it_and_leaves_the_next_one_whole(pair):
    """006-W5"""
    arrival, ours, theirs = pair
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        arrival.wait(1.0)
    after(0.01, theirs.sendall, b"a")
    arrival.wait(1.0)
    assert ours.recv(9) == b"a"


def test_bytes_that_nobody_reads_leave_the_event_loop_at_rest(pair):
    """006-W15"""
    arrival, ours, theirs = pair
    theirs.sendall(b"a")
    arrival.wait(None)
    before = gevent.get_hub().loop.iteration
    gevent.sleep(0.05)
    assert gevent.get_hub().loop.iteration - before < 20
    arrival.wait(None)
    assert ours.recv(9) == b"a"


def test_what_waits_for_an_idle_loop_is_called_once_and_only_then():
    """001-R13"""
    called = []
    when_idle(lambda: called.append("idle"), 60)
    for _ in range(50):
        pause()
    assert not called
    for _ in range(3):
        gevent.sleep(0.01)
    assert called == ["idle"]


def test_what_waits_for_an_idle_loop_is_called_in_time_where_it_never_is():
    """001-R13"""
    called = []
    when_idle(lambda: called.append("late"), 0.01)
    with gevent.Timeout(10):
        while not called:
            pause()
    for _ in range(3):
        gevent.sleep(0.01)
    assert called == ["late"]

"""Addresses of names, and which of them is connected to."""

import contextlib
import socket
import threading
import time

import gevent
import pytest

from app.dialing.dialer import Dialer
from app.dialing.liveness import notice_vanished
from app.dialing.names import Address, Names
from tests.support.upstream import swallow

SILENT = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
NO_SUCH = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def v4(host):
    return Address(socket.AF_INET, (host, 80))


def v6(host):
    return Address(socket.AF_INET6, (host, 80, 0, 0))


class Resolver:
    """Stands in for getaddrinfo; `answer` is a list of addresses, or what it raises."""

    def __init__(self, monkeypatch):
        self.asked, self.answer, self.busy = 0, [v4("192.0.2.1")], gevent.event.Event()
        self.busy.set()
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host, port, type):
        self.asked += 1
        self.busy.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(family, type, 6, "", sockaddr) for family, sockaddr in self.answer]


@pytest.fixture
def resolver(monkeypatch):
    return Resolver(monkeypatch)


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def names(now):
    return Names(lambda: now[0])


def test_a_name_is_looked_up_again_when_its_addresses_are_five_seconds_old(resolver, names, now):
    """002-R30"""
    for _ in range(3):
        assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
    assert resolver.asked == 1
    resolver.answer = [v4("192.0.2.2")]
    now[0] += 4.9
    assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
    now[0] += 0.2
    assert names.addresses("a.test", 80) == [v4("192.0.2.2")]
    assert resolver.asked == 2


def test_families_take_turns_and_what_failed_is_last_for_a_minute(resolver, names, now):
    """002-R30"""
    resolver.answer = [v6("2001:db8::1"), v6("2001:db8::2"), v4("192.0.2.1")]
    assert names.addresses("a.test", 80) == [
        v6("2001:db8::1"), v4("192.0.2.1"), v6("2001:db8::2")]
    names.failed("a.test", 80, v6("2001:db8::1"))
    now[0] += 30
    names.failed("a.test", 80, v4("192.0.2.1"))
    assert names.addresses("a.test", 80) == [
        v6("2001:db8::2"), v6("2001:db8::1"), v4("192.0.2.1")]
    now[0] += 31
    assert names.addresses("a.test", 80) == [
        v6("2001:db8::1"), v6("2001:db8::2"), v4("192.0.2.1")]
    # Another port is another server.
    assert names.addresses("a.test", 81)[1] == v4("192.0.2.1")


def test_while_the_resolver_does_not_answer_the_last_addresses_are_good(resolver, names, now):
    """002-R31"""
    names.addresses("a.test", 80)
    resolver.answer = SILENT
    for _ in range(3):
        now[0] += 3600
        assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
    resolver.busy.clear()
    now[0] += 3600
    for _ in range(20):
        now[0] += 1
        assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
    # One look-up waits, however many want the name.
    assert resolver.asked == 5
    resolver.busy.set()


def test_a_name_that_has_no_address_any_more_is_given_up_after_half_a_minute(resolver, names, now):
    """002-R31"""
    names.addresses("a.test", 80)
    for first in (1000.0, 2000.0):
        # The second time it is a hiccup like the first, since the name was there between.
        resolver.answer = NO_SUCH
        for now[0] in (first + 10, first + 25, first + 39):
            assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
        resolver.answer = [v4("192.0.2.1")]
        now[0] += 5
        assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
    for resolver.answer, now[0] in ((NO_SUCH, 3000.0), (SILENT, 3015.0)):
        assert names.addresses("a.test", 80) == [v4("192.0.2.1")]
    resolver.answer, now[0] = NO_SUCH, 3030.0
    with pytest.raises(socket.gaierror) as caught:
        names.addresses("a.test", 80)
    assert caught.value.errno == socket.EAI_NONAME


def test_a_name_has_left_an_address_that_was_in_no_answer_for_eight_seconds(resolver, names, now):
    """002-R57"""
    old, new = v4("192.0.2.1"), v4("192.0.2.2")

    def answered(at, answer):
        now[0], resolver.answer = at, answer
        with contextlib.suppress(socket.gaierror):
            names.addresses("a.test", 80)
        return names.has_left("a.test", 80, old)

    assert not names.has_left("a.test", 80, old)
    assert not answered(1000.0, [old])
    # One that comes and goes is still the name's, and who says nothing does not say that it is not.
    assert not any(answered(1000.0 + 6 * number, [(old, new)[number % 2]]) for number in range(9))
    assert not answered(1100.0, SILENT) and not answered(1200.0, NO_SUCH)
    assert not answered(1300.0, [old, new]) and not answered(1307.0, [new])
    assert answered(1315.0, [new]) and not names.has_left("a.test", 80, new)
    assert not answered(1321.0, [old])


def test_all_who_want_a_name_share_one_look_up(resolver, names):
    """002-R31"""
    resolver.busy.clear()
    waiting = [gevent.spawn(names.addresses, "a.test", 80) for _ in range(20)]
    gevent.sleep(0)
    waiting[0].kill()
    resolver.busy.set()
    gevent.joinall(waiting, 5)
    assert [greenlet.value for greenlet in waiting[1:]] == [[v4("192.0.2.1")]] * 19
    assert resolver.asked == 1


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test", "\ud800"])
def test_text_that_is_no_name_is_an_unknown_one(host):
    """002-R31"""
    with pytest.raises(socket.gaierror):
        Names().addresses(host, 80)


# -- connecting ------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(*hosts):
    """Listen at each host, on one port; yield it and the listeners."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server((hosts[0], 0)))
        port = first.getsockname()[1]
        yield port, [first, *(stack.enter_context(socket.create_server((host, port)))
                              for host in hosts[1:])]


def dial(monkeypatch, port, *hosts):
    """Connect to one of some addresses; return which, and the order of the next time."""
    resolver = Resolver(monkeypatch)
    resolver.answer = [Address(socket.AF_INET, (host, port)) for host in hosts]
    names = Names()
    sock, (host, _, address) = Dialer(names).connect("a.test", port)
    with sock:
        assert sock.getpeername() == address.sockaddr and sock.gettimeout() is None
        assert host == "a.test"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return address.sockaddr[0], [a.sockaddr[0] for a in names.addresses("a.test", port)]


def test_an_address_that_refuses_is_followed_by_the_next_at_once(monkeypatch):
    """002-R30"""
    with listening("127.0.0.2") as (port, _):
        began = time.monotonic()
        assert dial(monkeypatch, port, "127.0.0.3", "127.0.0.4", "127.0.0.2") == (
            "127.0.0.2", ["127.0.0.2", "127.0.0.3", "127.0.0.4"])
        assert time.monotonic() - began < 0.2


def test_an_address_that_is_silent_is_passed_over_and_remembered(monkeypatch):
    """002-R30"""
    with listening("127.0.0.2", "127.0.0.3") as (port, [silent, _]):
        swallow(silent)
        assert dial(monkeypatch, port, "127.0.0.2", "127.0.0.3") == (
            "127.0.0.3", ["127.0.0.3", "127.0.0.2"])


def test_where_all_refuse_the_last_error_is_raised(monkeypatch):
    """002-R30"""
    with listening("127.0.0.2") as (port, _), pytest.raises(ConnectionRefusedError):
        dial(monkeypatch, port, "127.0.0.3", "127.0.0.4")


def test_a_slow_address_wins_if_the_others_fail(monkeypatch):
    """002-R30"""
    with listening("127.0.0.2") as (port, [slow]):
        filling = [socket.socket() for _ in range(140)]
        for sock in filling:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.2", port))
        # The kernel answers again when the queue has room: the first packet is repeated after 1 s.
        timer = threading.Timer(0.4, lambda: [slow.accept()[0].close() for _ in range(100)])
        timer.start()
        try:
            assert dial(monkeypatch, port, "127.0.0.2", "127.0.0.3")[0] == "127.0.0.2"
        finally:
            timer.join()
            for sock in filling:
                sock.close()


def test_a_vanished_peer_is_noticed_within_a_minute():
    """006-W21"""
    def options(*within_s):
        with socket.socket() as sock:
            notice_vanished(sock, *within_s)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            return [sock.getsockopt(socket.IPPROTO_TCP, option) for option in (
                socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT)]

    idle_s, interval_s, count, unacknowledged_ms = options()
    assert idle_s + count * interval_s < 60 and unacknowledged_ms < 60_000
    assert options(2.5)[3] == 2_500 and options(3600)[3] == unacknowledged_ms


def test_what_a_listener_is_told_holds_for_its_connections():
    """006-W21"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notice_vanished(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT):
                assert sock.getsockopt(socket.IPPROTO_TCP, option) == listener.getsockopt(
                    socket.IPPROTO_TCP, option)

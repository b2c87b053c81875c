"""How long a client is waited for that reads nothing or asks for nothing, on real sockets."""

import socket

import gevent
import gevent.socket
import pytest

import app.client_writes as module
from app.client_socket import ClientSocket
from app.dialing.liveness import NOTICED_WITHIN_S, notice_vanished
from app.errors import IdleTooLong
from app.eventloop import readable
from app.hang_ups import HangUpWatch
from app.next_head import Patience
from tests.support.upstream import swallow

DEADLINE_S = 10
DATA = b"x" * 20_000_000


class Pair:
    """A client, the router's socket for it, and how often the router has looked at it."""

    def __init__(self, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            notice_vanished(listener)
            self.client = gevent.socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        self.hang_ups, self.looked = HangUpWatch(), 0
        self.router = ClientSocket(accepted, self.hang_ups, Patience(1, 1, 1, 1), health_only=False)
        look = module.has_acknowledged_all

        def looks(sock):
            self.looked += 1
            return look(sock)
        monkeypatch.setattr(module, "_LOOK_S", 0.5)
        monkeypatch.setattr(module, "has_acknowledged_all", looks)

    @property
    def tolerated_s(self):
        return self.router.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000

    def sends(self, limit_s):
        """Begin to send more than the kernel takes; return the greenlet when the router looked."""
        self.router.limit_writes(limit_s)
        sending = gevent.spawn(self.router.sendall, DATA)
        with gevent.Timeout(DEADLINE_S):
            while not self.looked:
                gevent.sleep(0)
        return sending

    def close(self):
        for end in (self.client, self.router, self.hang_ups):
            end.close()


@pytest.fixture
def pair(monkeypatch):
    it = Pair(monkeypatch)
    yield it
    it.close()


def test_a_client_that_reads_nothing_is_waited_for_as_long_as_a_write_may_take(pair):
    """006-W27: until it reads again."""
    sending = pair.sends(300)
    assert pair.tolerated_s > 300
    left = len(DATA)
    while left:
        left -= len(pair.client.recv(1_000_000))
    sending.join(DEADLINE_S)
    assert sending.successful() and pair.tolerated_s == NOTICED_WITHIN_S


def test_a_client_that_has_vanished_is_not(pair):
    """006-W27, 006-W21"""
    swallow(pair.client)
    sending = pair.sends(300)
    assert pair.tolerated_s == NOTICED_WITHIN_S
    sending.kill()


def test_a_shorter_limit_needs_no_look(pair):
    """006-W27"""
    pair.router.limit_writes(1)
    with pytest.raises(TimeoutError):
        pair.router.sendall(DATA)
    assert not pair.looked and pair.tolerated_s == NOTICED_WITHIN_S


@pytest.mark.parametrize("read, unread, ends", [
    (b"", b"", True), (b"", b"\r\n\r\n", True), (b"", b"\r\nG", False),
    (b"GET / HTTP/1.1\r\nHost: x\r\n", b"", True), (b"GET / HTTP/1.1\r\n", b"\r\n", False)])
@pytest.mark.parametrize("order", ["give_way", "close_if_idle"])
def test_a_connection_gives_way_unless_some_of_a_request_has_just_come(pair, read, unread, ends,
                                                                       order):
    """007-R1, 007-R3, 002-R40: empty lines before a head are none, behind it they end it."""
    told = []

    def serve():
        try:
            gevent.sleep(DEADLINE_S)
        except IdleTooLong:
            told.append(order)

    pair.router.served_by = serving = gevent.spawn(serve)
    if read:
        pair.client.sendall(read)
        assert pair.router.recv(100) == read
    if unread:
        pair.client.sendall(unread)
        with gevent.Timeout(DEADLINE_S):
            while not readable(pair.router):
                gevent.sleep(0)
    getattr(pair.router, order)()
    gevent.sleep(0.001)
    serving.kill()
    # A drain leaves a head that has begun to its own deadline.
    assert told == [order] * (ends and not (read and order == "close_if_idle"))


def test_requests_sent_ahead_are_read_in_turn_with_everybody_else(pair):
    """006-W15: what they hold is here, and none of them waits for anything."""
    ran, head = [], b"GET / HTTP/1.1\r\n\r\n"
    gevent.sleep(0)
    for number in range(5):
        pair.router.end_request(ahead=head)
        gevent.spawn(ran.append, number)
        assert pair.router.recv(100) == head
    assert ran[:3] == [0, 1, 2]

"""When the end of a pooled connection had nothing to do with the request on it."""

import socket

import pytest

import app.upstream.connection as module
from app.upstream.connection import CLOSED_BY_PEER, Connection

HEAD = b"POST / HTTP/1.1\r\n\r\n"


class Peer:
    """The other end of a connection, on a clock of the test's own."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        ours, self.sock = socket.socketpair()
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.connection = Connection(ours, None)


@pytest.fixture
def peer(monkeypatch):
    it = Peer(monkeypatch)
    with it.sock:
        yield it
    it.connection.close()


@pytest.mark.parametrize("later, stale", [(0.0, True), (1.0, True), (1.1, False)])
def test_an_end_is_stale_within_a_second_of_the_first_byte_sent(peer, later, stale, monkeypatch):
    """002-R14"""
    def end():
        peer.sock.close()
        peer.now += later
        return b""
    monkeypatch.setattr(peer.connection, "read", end)
    with pytest.raises(CLOSED_BY_PEER):
        peer.connection.exchange(HEAD, (b"{}",))
    assert peer.connection.was_idle_too_long is stale


@pytest.mark.parametrize("later, stale", [(0.5, True), (2.0, False)])
def test_an_end_in_the_middle_of_sending_is_judged_by_when_sending_began(
        peer, later, stale, monkeypatch):
    """002-R14: an upstream that has been sent to for so long may have begun to work."""
    def wait(sock):
        if peer.sock.fileno() >= 0:
            peer.sock.close()
            peer.now += later
        return False
    monkeypatch.setattr(module, "wait_until_ready", wait)
    with pytest.raises(CLOSED_BY_PEER):
        peer.connection.exchange(HEAD, (b"x" * 1_000_000,))
    assert peer.connection.was_idle_too_long is stale

"""Clients that leave, on real sockets."""

import socket

import gevent
import pytest

from app.eventloop import pause
from app.hang_ups import HangUpWatch


class Client:
    """A client's socket, and whether its leaving was noticed."""

    def __init__(self, told):
        self.sock, self.peer = socket.socketpair()
        self.told = told

    def fileno(self):
        return self.sock.fileno()

    def on_hang_up(self):
        self.told.append(self)


@pytest.fixture
def crowd():
    told = []
    clients = [Client(told) for _ in range(300)]
    watch = HangUpWatch()
    for client in clients:
        watch.add(client)
    yield clients, told
    watch.close()
    for client in clients:
        client.sock.close()
        client.peer.close()


def test_clients_that_leave_at_once_are_noticed_some_at_a_time(crowd):
    """006-W1, 006-W15: others run in between."""
    clients, told = crowd
    for client in clients:
        client.peer.close()
    noticed = []
    with gevent.Timeout(10):
        while len(told) < len(clients):
            pause()
            noticed.append(len(told))
    assert set(told) == set(clients) and len(told) == len(clients)
    assert max(now - before for before, now in zip([0, *noticed], noticed)) <= 3 * 32

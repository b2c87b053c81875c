"""Tells requests that their client has left.

A worker has one epoll set. A client's socket enters it at its first request and stays until it is
closed, when the kernel removes it. It is registered for EPOLLRDHUP, not for readability: a client
may send its next request ahead, which is no reason to wake up. It is one-shot (EPOLLONESHOT): a
peer hangs up once.

Source: specs/006 W1.
"""

import weakref
from typing import Protocol

from app.eventloop import epoll, when_readable

_EPOLLRDHUP, _EPOLLONESHOT = 0x2000, 1 << 30
# So many requests end in one turn of the event loop, 0.2 ms each; a probe waits for a turn or two.
_AT_ONCE = 32


class Watched(Protocol):
    """A socket that wants to know."""

    def fileno(self) -> int:
        """Return its descriptor."""

    def on_hang_up(self) -> None:
        """Take note that the peer has ended its sending side, or that the connection broke."""


class HangUpWatch:
    """Tells requests that their client has closed its connection; one for each worker.

    A request costs nothing but a flag. To register and remove its socket each time would cost
    10 µs.
    """

    def __init__(self) -> None:
        self._clients: weakref.WeakValueDictionary[int, Watched] = (
            weakref.WeakValueDictionary())
        self._set = epoll()
        self._stop = when_readable(self._set.fileno(), self._on_hang_up)

    def add(self, client: Watched) -> None:
        """Watch a socket until it is closed. Adding it twice does it once."""
        if self._clients.get(client.fileno()) is not client:
            self._clients[client.fileno()] = client
            self._set.register(client.fileno(), _EPOLLRDHUP | _EPOLLONESHOT)

    def _on_hang_up(self) -> None:
        for descriptor, _ in self._set.poll(0, _AT_ONCE):
            client = self._clients.get(descriptor)
            if client is not None:
                client.on_hang_up()

    def close(self) -> None:
        """Stop watching altogether."""
        self._stop()
        self._set.close()

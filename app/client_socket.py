"""A client's connection: the one seam between the server and the app.

The worker makes a `ClientSocket` for each connection it accepts, and gunicorn puts it into the
WSGI environment of each request. The app asks for it with `client_of(environ)` and tells it what
is to become of the connection. Without a server in front of the app it gets a `Client`, for which
every method does nothing.

Theory
    Who owns a socket. One greenlet serves a connection from its accept to its close. It alone
    reads and writes. `begin_request` and `end_request` mark the part in which a request owns the
    connection; `end_request` undoes what the app has set in between, but for `end_in_reset`, which
    lasts until whoever has set it takes it back.

    Who may throw into whom. The event loop's own callbacks throw into the serving greenlet:
    `ClientGone` when the client hangs up while a request wants to know, and `IdleTooLong` when a
    connection without a request is to end. A callback runs while no greenlet does, so the one it
    throws into is always in a wait. Nothing else throws into a greenlet that serves a client but
    the shutdown (app.inflight).

    How a hang-up is seen. A worker has one epoll set. A client's socket enters it at its first
    request and stays until it is closed, when the kernel removes it. It is registered for
    EPOLLRDHUP, not for readability: a client may send its next request ahead, which is no reason
    to wake up. It is one-shot (EPOLLONESHOT): a peer hangs up once.

Source: specs/006 W1, W3, W15, specs/007 R1-R3.
"""

import contextlib
import socket
import struct
import time
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import gevent
import gevent.socket
from gevent import monkey

from app.errors import ClientGone, IdleTooLong
from app.eventloop import FairShare, after_this_turn, getcurrent, readable

# gevent removes epoll and its constants from the select module.
_epoll = monkey.get_original("select", "epoll")
_EPOLLRDHUP, _EPOLLONESHOT = 0x2000, 1 << 30
_LOOP_READ = 1


class Request(Protocol):
    """What is used of the server's own object for a request."""

    body: Any

    def force_close(self) -> None:
        """End the connection after the answer."""


class Client:
    """What the app may ask of a client's connection; this one stands in where there is none.

    health_only   it came in by the address for probes and scrapes
    body_pending  the current request has announced a body that nobody has read to its end
    """

    health_only = False
    body_pending = False

    def body_taken(self) -> None:
        """Take note that the request's body has been read to its end."""

    def abandon_body(self) -> None:
        """Leave the rest of the body unread, and end the connection after the answer."""

    def close_after_answer(self) -> None:
        """End the connection after the answer, and say so in it."""

    def limit_writes(self, seconds: float) -> None:
        """Bound each write of the answer; one that takes longer ends the connection."""

    def watch(self) -> None:
        """Throw ClientGone into this greenlet when the client hangs up, until the request ends.

        Raises  ClientGone if it has hung up already
        """

    def join_next_two_writes(self) -> None:
        """Hold the next write back until the one after it."""

    def end_in_reset(self, on: bool) -> None:
        """Have the connection end in a reset when it is closed, or in an orderly end again."""


_NOBODY = Client()


def client_of(environ: Mapping[str, Any]) -> Client:
    """Return the client's connection of a WSGI environment."""
    client: Client = environ.get("gunicorn.socket", _NOBODY)
    return client


class HangUpWatch:
    """Tells requests that their client has closed its connection; one for each worker.

    A request costs nothing but a flag. To register and remove its socket each time would cost
    10 µs.
    """

    def __init__(self) -> None:
        self._clients: weakref.WeakValueDictionary[int, ClientSocket] = (
            weakref.WeakValueDictionary())
        self._set = _epoll()
        self._watcher = gevent.get_hub().loop.io(self._set.fileno(), _LOOP_READ)
        self._watcher.start(self._on_hang_up)

    def add(self, client: "ClientSocket") -> None:
        """Watch a socket until it is closed. Adding it twice does it once."""
        if self._clients.get(client.fileno()) is not client:
            self._clients[client.fileno()] = client
            self._set.register(client.fileno(), _EPOLLRDHUP | _EPOLLONESHOT)

    def _on_hang_up(self) -> None:
        for descriptor, _ in self._set.poll(0):
            client = self._clients.get(descriptor)
            if client is not None:
                client.on_hang_up()

    def close(self) -> None:
        """Stop watching altogether."""
        self._watcher.stop()
        self._set.close()


class ClientSocket(Client, gevent.socket.socket):
    """A client's socket.

    Its reads let others run first, so that no client has the event loop to itself: neither by
    sending without end what costs little to send and much to read, nor by sending requests ahead.

    served_by   the greenlet that serves it
    idle_since  seconds on the monotonic clock; since when nothing of the next request has come,
                or None while one is coming or being served
    """

    def __init__(self, sock: socket.socket, hang_ups: HangUpWatch, *, health_only: bool) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.health_only = health_only
        self.served_by = getcurrent()
        self.idle_since: float | None = time.monotonic()
        self._hang_ups = hang_ups
        self._share = FairShare()
        self._request: Request | None = None
        self._hung_up = self._watched = False
        self._joining, self._held_back = False, b""

    def begin_request(self, request: Request, announces_body: bool) -> None:
        """Let a request have the connection."""
        self.idle_since = None
        self._request, self.body_pending = request, announces_body
        # Requests sent ahead are served without a wait between them.
        self._share.take()

    def end_request(self, *, waits: bool) -> None:
        """Take the connection back from its request; `waits`: nothing of the next one is here."""
        self._watched, self._request = False, None
        self._joining, self._held_back = False, b""
        self.settimeout(None)
        self.idle_since = time.monotonic() if waits else None

    def body_taken(self) -> None:
        self.body_pending = False

    def abandon_body(self) -> None:
        self.close_after_answer()
        if self._request is not None:
            self._request.body.failed = True

    def close_after_answer(self) -> None:
        if self._request is not None:
            self._request.force_close()

    def limit_writes(self, seconds: float) -> None:
        self.settimeout(seconds)

    def watch(self) -> None:
        if self._hung_up:
            raise ClientGone
        self._hang_ups.add(self)
        self._watched = True

    def on_hang_up(self) -> None:
        """Take note that the client has ended its sending side, or that the connection broke."""
        self._hung_up = True
        if self._watched:
            self.served_by.throw(ClientGone())

    def end_in_reset(self, on: bool) -> None:
        # struct linger {on, 0 seconds}
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))

    def recv(self, *args: int) -> bytes:
        """Read, after everybody else has had a turn."""
        self._share.take()
        data: bytes = super().recv(*args)
        self.idle_since = None
        return data

    def join_next_two_writes(self) -> None:
        # A response head and the first bytes of its body leave together: one system call and one
        # packet less, which saves 10 µs.
        self._joining = True

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Write all of `data`."""
        if self._joining:
            if not self._held_back:
                self._held_back = data
                return
            data, self._joining, self._held_back = self._held_back + data, False, b""
        # The kernel takes all of it at once as a rule. gevent's own method asks for the size of
        # the kernel's buffer first, which costs 7 µs each time.
        try:
            sent = self._sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            super().sendall(memoryview(data)[sent:], flags)

    def close_if_idle(self) -> None:
        """End the connection unless some of a request is here or is being served."""
        def end() -> None:
            # In the event loop itself: no byte can be read between the look and the end.
            if self.idle_since is not None and not readable(self):
                self.served_by.throw(IdleTooLong())
        after_this_turn(end)

    def hang_up(self) -> None:
        """End every wait for the client, to read or to write."""
        # The kernel's socket: gevent's own method would throw into the greenlet that waits.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

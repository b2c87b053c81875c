"""What the service asks of gevent's event loop.

Outside a gevent worker (in a unit test) everything here still works, but a deadline or a hang-up
can only interrupt a wait that gevent knows of.

Source: specs/006 W1-W3.
"""

import contextlib
import select
import socket
import time
import weakref
from collections.abc import Callable

import gevent
import gevent.socket
from gevent import Greenlet, monkey
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from app.errors import ClientGone, IdleTooLong

# gevent hides the real ones behind copies of its own that go through the event loop.
_epoll = monkey.get_original("select", "epoll")
_poll = monkey.get_original("select", "poll")

# The peer has ended its sending side, or the connection is broken (that one is always told).
# Not readability: a client may send its next request ahead, and that is no reason to wake up.
# (gevent takes these names out of the select module.)
_PEER_HUNG_UP = 0x2000  # EPOLLRDHUP
_TOLD_ONCE = 1 << 30  # EPOLLONESHOT
_LOOP_READ = 1
# The shortest time there is: the event loop looks at its timers once a turn.
_NEXT_TURN_S = 1e-9


class Deadline:
    """A block that ends, if need be in the middle of a wait, once `seconds` have passed.

    seconds  a total, on the event loop's monotonic clock, however many waits there are
    error    makes what is raised then
    Cost     about 2 µs

    The error is made when it is due. One made before and kept by its frame would know that frame
    by its traceback, and so leave all of the request to the garbage collector.
    """

    def __init__(self, seconds: float, error: Callable[[], BaseException]) -> None:
        self._timeout = gevent.Timeout(seconds)
        self._error = error

    def __enter__(self) -> None:
        self._timeout.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._timeout.close()
        if error is self._timeout:
            raise self._error() from None


def event() -> Event:
    """Return a new event; waiting for it lets other greenlets run."""
    return Event()


def spawn(function: Callable[[], None]) -> Greenlet:
    """Run `function` in a greenlet of its own."""
    return gevent.spawn(function)


def current() -> Greenlet:
    """Return the greenlet that runs now."""
    return gevent.getcurrent()


def throw_soon(greenlet: Greenlet, error: BaseException) -> None:
    """Raise `error` in a waiting greenlet, on the event loop's next turn; it may have ended."""
    gevent.kill(greenlet, error)


def serve(listener: socket.socket, handle: Callable[..., None], most: int) -> StreamServer:
    """Call `handle(socket, address)` for each connection, in greenlets, at most `most` at a time.

    Connections beyond that wait in the kernel, where another process may take them.
    """
    server = StreamServer(listener, handle=handle, spawn=Pool(most))
    # One at a time: what comes in a burst is shared out between the workers.
    server.max_accept = 1
    server.start()
    return server


def after_this_turn(function: Callable[[], None]) -> None:
    """Call `function` in the event loop itself once the greenlets ready now have run."""
    gevent.get_hub().loop.run_callback(function)


def nap(seconds: float) -> None:
    """Let others run for so long."""
    gevent.sleep(seconds)


def pause() -> None:
    """Let everybody else run who is ready, and who waits for a socket or a time that has come.

    By a timer, since gevent.sleep(0) gets its turn back up to fifty times before the event loop
    looks at a socket again.
    """
    gevent.sleep(_NEXT_TURN_S)


def tell_uncaught(tell: Callable[[BaseException], None]) -> None:
    """Have `tell` called with what no greenlet has caught, in place of a traceback on stderr.

    That would show what a function was called with: a client's address, for one.
    """
    def told(_context: object, _type: object, error: BaseException | None, _: object) -> None:
        if error is not None:
            tell(error)

    gevent.get_hub().print_exception = told


class FairShare:
    """Keeps a greenlet that never has to wait from having the event loop to itself.

    A read that finds its data waiting does not switch: without this, one fast stream would hold
    up every other one, every deadline and every probe.
    """

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        self._turn = -1

    def take(self) -> None:
        """Pause, unless the event loop has turned since the last call. Cost: 0.1 or 5 µs."""
        if self._loop.iteration == self._turn:
            pause()
        self._turn = self._loop.iteration


def readable(sock: socket.socket) -> bool:
    """Say whether a read from `sock` would return at once, without waiting. Cost: 1 µs."""
    poll = _poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class FairSocket(gevent.socket.socket):
    """A client's socket, by which one client cannot keep the event loop to itself.

    Neither by sending without end what costs little to send and much to read, nor by sending
    requests ahead, for which whoever serves them takes a share before each.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.share = FairShare()
        # Whether a write waits for the next one, and the one that waits.
        self._joining, self._first = False, b""
        # Who serves its peer.
        self.served_by = gevent.getcurrent()
        # Since when nothing of the next request has come; None: it is coming, or served.
        self.idle_since: float | None = time.monotonic()
        # Whether its peer has ended its sending side, and whether a request is to be told of that.
        self.hung_up = self.guarded = False
        # Whether it came in where only probes and scrapes are answered.
        self.health_only = False

    def recv(self, *args: int) -> bytes:
        """Read, after everybody else has had a turn."""
        self.share.take()
        data: bytes = super().recv(*args)
        self.idle_since = None
        return data

    def join_next_two_writes(self) -> None:
        """Hold the next write back until the one after it.

        For a response head whose body's first bytes are here already: they leave together, which
        saves a system call and a packet: 10 µs, a thirtieth of a request.
        """
        self._joining = True

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Write all of `data`."""
        if self._joining:
            if not self._first:
                self._first = data
                return
            data, self._joining, self._first = self._first + data, False, b""
        # As a rule the kernel takes all of it at once. gevent's own method would first ask for the
        # size of the kernel's buffer, each time: a fortieth of a request.
        try:
            sent = self._sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            super().sendall(memoryview(data)[sent:], flags)

    def hear_no_more(self) -> None:
        """End the wait for the peer's next request, unless some of it is here."""
        def end() -> None:
            # In the event loop itself: between the look and the end nothing can come to be served.
            if self.idle_since is not None and not readable(self):
                self.served_by.throw(IdleTooLong())
        after_this_turn(end)

    def hang_up(self) -> None:
        """Let every wait for the peer end, to read or to write."""
        # The kernel's socket: gevent's own method would throw into whoever waits.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class HangUpGuard:
    """One request's watch on its client; see `HangUpWatch.guard`."""

    def __init__(self, client: FairSocket | None) -> None:
        self._client = client

    def release(self) -> None:
        """Stop watching. Releasing twice is harmless."""
        if self._client is not None:
            self._client.guarded, self._client = False, None


class HangUpWatch:
    """Tells requests that their client has closed its connection.

    One epoll set per worker holds the sockets of its clients from the first request on, until they
    are closed; the event loop watches the set. A request costs nothing but a note, where to put its
    socket in and to take it out again was a thirtieth of it.
    """

    def __init__(self) -> None:
        self._clients: weakref.WeakValueDictionary[int, FairSocket] = weakref.WeakValueDictionary()
        self._set = _epoll()
        self._watcher = gevent.get_hub().loop.io(self._set.fileno(), _LOOP_READ)
        self._watcher.start(self._on_hang_up)

    def guard(self, client: FairSocket | None) -> HangUpGuard:
        """Throw ClientGone into who serves `client` when it hangs up.

        client   its connection; None (no server in front of the app) is not watched
        Returns  HangUpGuard; release it before the socket serves another request
        Raises   ClientGone if it has hung up before

        Source: specs/006 W1.
        """
        if client is None:
            return HangUpGuard(None)
        if client.hung_up:
            raise ClientGone
        # The kernel takes a socket out of the set when it is closed.
        if self._clients.get(client.fileno()) is not client:
            self._clients[client.fileno()] = client
            self._set.register(client.fileno(), _PEER_HUNG_UP | _TOLD_ONCE)
        client.guarded = True
        return HangUpGuard(client)

    def _on_hang_up(self) -> None:
        # In the event loop itself: no greenlet runs now, so each one thrown into is in a wait.
        for descriptor, _ in self._set.poll(0):
            client = self._clients.get(descriptor)
            if client is not None:
                client.hung_up = True
                if client.guarded:
                    client.served_by.throw(ClientGone())

    def close(self) -> None:
        """Stop watching altogether."""
        self._watcher.stop()
        self._set.close()

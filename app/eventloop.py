"""What the service asks of gevent's event loop.

Outside a gevent worker (in a unit test) everything here still works, but a deadline can only
interrupt a wait that gevent knows of.

Source: specs/006 W2, W15.
"""

import math
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import Greenlet, getcurrent, monkey, sleep, spawn
from gevent.event import Event
from gevent.pool import Pool
from gevent.queue import Empty, LifoQueue
from gevent.server import StreamServer
from gevent.socket import wait_readwrite

# These are gevent's, for the rest of the app.
__all__ = ("Arrival", "Deadline", "Empty", "Event", "FairShare", "Greenlet", "LifoQueue",
           "after_this_turn", "call_after", "epoll", "getcurrent", "pause", "readable",
           "report_uncaught", "serve", "sleep", "spawn", "wait_until_ready", "when_idle",
           "when_readable")

# gevent's own poll goes through the event loop; this one asks the kernel.
_poll = monkey.get_original("select", "poll")
# gevent removes it from the select module.
epoll = monkey.get_original("select", "epoll")
_LOOP_READ = 1
# The event loop looks at its timers once a turn, so the shortest time is the next turn.
_NEXT_TURN_S = 1e-9


class Deadline:
    """A block that is interrupted, in the middle of a wait, once `seconds` have passed.

    seconds  a total for all waits of the block, on the event loop's monotonic clock
    error    makes the exception that is raised then
    Cost     about 2 µs

    The exception is made when it is due. A frame that kept one made before would be known to it
    by its traceback: a cycle that only the garbage collector frees, with the whole request in it.
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


class Arrival:
    """Waits for the bytes of one socket, again and again.

    One watcher and one timer serve all waits. gevent's own wait arms both anew each time and reads
    first to hear that nothing is there, which costs 10 µs more.

    sock  whatever reads it waits here and nowhere else, one greenlet at a time
    """

    def __init__(self, sock: socket.socket) -> None:
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(sock.fileno(), _LOOP_READ)
        self._waiting: Greenlet | None = None
        self._due = math.inf
        self._timer: Any = None
        self._timer_at = math.inf

    def wait(self, seconds: float | None) -> None:
        """Return when a byte is here, or the end.

        seconds  None: for ever
        Raises   TimeoutError
        Cost     switches greenlets, always; 4 µs
        """
        self._due = math.inf
        if seconds is not None:
            self._due = time.monotonic() + seconds
            if self._due < self._timer_at:
                self._set_timer(seconds)
        if not self._watcher.active:
            self._watcher.start(self._came)
        self._waiting = getcurrent()
        try:
            self._hub.switch()
        finally:
            self._waiting = None

    def _came(self) -> None:
        if self._waiting is None:
            # Nobody reads: the event loop would call for ever.
            self._watcher.stop()
        else:
            self._waiting.switch()

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._look)
        self._timer_at = self._due

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer, self._timer_at = None, math.inf

    def _look(self) -> None:
        """End the wait if its time is over; it may have begun long after the timer."""
        self._stop_timer()
        if self._waiting is not None and self._due < math.inf:
            left = self._due - time.monotonic()
            if left > 0:
                self._set_timer(left)
            else:
                self._waiting.throw(TimeoutError())

    def close(self) -> None:
        """End it, before the socket is closed."""
        self._stop_timer()
        self._watcher.close()


def serve(listener: socket.socket, handle: Callable[..., None], most: int) -> StreamServer:
    """Call `handle(socket, address)` for each connection, in greenlets, at most `most` at a time.

    Connections beyond that wait in the kernel, where another worker may accept them.
    """
    server = StreamServer(listener, handle=handle, spawn=Pool(most))
    # One at a time, so that the workers share a burst.
    server.max_accept = 1
    server.start()
    return server


def after_this_turn(function: Callable[[], None]) -> None:
    """Call `function` in the event loop itself once the greenlets ready now have run."""
    gevent.get_hub().loop.run_callback(function)


def when_idle(function: Callable[[], None], at_most_s: float) -> None:
    """Call `function` in the event loop itself, once, when nobody else has anything to do.

    at_most_s  it is called after so many seconds in any case
    Cost       3 µs
    """
    loop = gevent.get_hub().loop
    idle, timer = loop.idle(), loop.timer(at_most_s)

    def call() -> None:
        idle.close()
        timer.close()
        function()

    idle.start(call)
    timer.start(call)


def when_readable(descriptor: int, function: Callable[[], None]) -> Callable[[], None]:
    """Call `function` in the event loop whenever a descriptor is readable.

    Returns  a function that ends this
    """
    watcher = gevent.get_hub().loop.io(descriptor, _LOOP_READ)
    watcher.start(function)
    stop: Callable[[], None] = watcher.stop
    return stop


def call_after(seconds: float, function: Callable[[], None]) -> Callable[[], None]:
    """Call `function` in the event loop itself after so long, once.

    Returns  ends this; to be called in any case
    Cost     1 µs
    """
    timer = gevent.get_hub().loop.timer(seconds)
    timer.start(function)
    stop: Callable[[], None] = timer.close
    return stop


def pause() -> None:
    """Let every other greenlet run that is ready, whose socket is ready or whose timer has expired.

    A timer is needed: after gevent.sleep(0) this greenlet could run again up to fifty times before
    the event loop looks at a socket.
    """
    gevent.sleep(_NEXT_TURN_S)


def report_uncaught(report: Callable[[BaseException], None]) -> None:
    """Call `report` with each exception that no greenlet has caught.

    gevent would write a traceback with the arguments of functions to stderr: a client's address,
    for example.
    """
    def on_uncaught(_context: object, _type: object, error: BaseException | None,
                    _traceback: object) -> None:
        if error is not None:
            report(error)

    gevent.get_hub().print_exception = on_uncaught


class FairShare:
    """Lets others run beside a greenlet whose reads never have to wait.

    A read that finds data in the kernel does not switch greenlets. Without a pause one fast stream
    would hold up every other stream, every deadline and every probe.
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


def wait_until_ready(sock: socket.socket) -> bool:
    """Wait until a socket takes data or has some; say whether it has, or has ended.

    Cost  1 µs if it is ready, which switches no greenlet
    """
    poll = _poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLOUT)
    while not (found := poll.poll(0)):
        wait_readwrite(sock.fileno())
    return bool(found[0][1] & ~select.POLLOUT)

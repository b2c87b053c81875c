"""The gunicorn worker: a gevent worker that keeps the router's promises at its edges.

The stock worker answers a request that it cannot parse with HTML that quotes it, and logs the
client's address. It cannot end a connection whose body is left unread without destroying its own
answer. It logs a traceback when a client stops reading. A long stream or an idle connection makes
the master kill it at shutdown. This worker does none of that.

gunicorn loads this module in the master, before gevent has patched anything. It may import
nothing that opens sockets.

Source: specs/002 R21, specs/006 W3, W11, specs/007 R1-R3, R20, R21.
"""

import contextlib
import functools
import gc
import heapq
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker

from app.answer_writer import AnswerWriter
from app.client_socket import ClientSocket
from app.config import ConfigError
from app.dialing.liveness import notice_vanished
from app.draining import Address, Drain
from app.errors import ApiError, ClientGone, IdleTooLong, ShuttingDown, StreamCut
from app.eventloop import after_this_turn, readable, report_uncaught, serve, sleep
from app.hang_ups import HangUpWatch
from app.heartbeat import Heartbeat, touch_in_memory
from app.log_writer import write_lines_later, write_waiting_lines
from app.logs import places
from app.next_head import Patience
from app.refusals import as_bytes, refusal_for
from app.request_head import judge_head
from app.routing.headers import sane_request_id

logger = logging.getLogger(__name__)

_REFUSAL_WRITE_S = 1.0
# How much may wait unsent in the kernel for a slow reader. Without this bound a socket takes
# megabytes, and then counts as stuck until a third of them has gone.
_UNSENT_BYTES = 64 * 1024
# How often a worker reports to the master and looks whether it is to end; how often it does while
# it is full; how often it takes a step of its drain.
_TICK_S, _FULL_TICK_S, _DRAIN_TICK_S = 0.25, 0.025, 0.1
# While a worker is full it gives up a tenth of its places at a time, if they are spare. Rather than
# end a request whose body comes well, it waits so long for one to become spare.
_PLACES_AT_ONCE, _SOON_S = 0.1, 0.1
# Between two tries to start a worker that cannot load the app.
_START_AGAIN_S = 1.0
# Objects made and not freed, then collections of the young and of the middle generation.
_COLLECT_AFTER = (10_000, 10, 50)

# A head that is not whole may have a line of so many bytes, and so many of the largest fields.
_LINE_BYTES, _FIELDS_AT_ONCE = 8192, 8
# What is read at least of a refused body that announces no length, in case its client reads nothing
# before it has sent all.
_REST_BYTES = 32 * 1024 * 1024
_NO_TIMEOUT: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_QUIET_ENDS = (ClientGone, IdleTooLong, ShuttingDown)

# Here, since the master loads this module before it makes a worker.
touch_in_memory()


class RouterLogger(Logger):
    """gunicorn's logger, which tells an exception by its type and place."""

    def exception(self, msg: Any, *_: Any, **__: Any) -> None:
        """Log the exception at hand; the stock method logs its text."""
        error = sys.exc_info()[1]
        if error is not None:
            _log_uncaught(error)


class RouterWorker(GeventWorker):
    """Serves connections like its base, with the differences named in the module's text."""

    alive: bool
    tmp: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tmp = Heartbeat(self.tmp)

    def init_signals(self) -> None:
        """Set the handlers of signals.

        The stock method first gives all of them up. What comes meanwhile would kill the worker
        without a word, so it waits for its handler.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def timeout_ctx(self) -> contextlib.AbstractContextManager[None]:
        """Return what bounds the wait for a request: nothing, since ClientSocket does."""
        return _NO_TIMEOUT

    def run(self) -> None:
        """Accept connections until told to end, then drain."""
        write_lines_later(after_this_turn)
        report_uncaught(_log_uncaught)
        _spare_the_garbage_collector()
        # gunicorn looks up some twenty settings for each request, by two function calls each. From
        # here on they are fixed.
        self.cfg.__dict__.update((name, each.get()) for name, each in self.cfg.settings.items())
        self._hang_ups = HangUpWatch()
        router = self.wsgi.extensions["router"]
        self._in_flight, self._fields_for_origin = router.in_flight, router.fields_for_origin
        self._patience = Patience(
            self.cfg.keepalive, router.head_timeout_s,
            _LINE_BYTES + _FIELDS_AT_ONCE * self.cfg.limit_request_field_size,
            max(_REST_BYTES, router.max_request_bytes))
        # The second address is the one for probes, as gunicorn.conf.py binds them.
        self._clients, self._probes = Address(), Address()
        for listener, address in zip(self.sockets, (self._clients, self._probes)):
            listener.setblocking(True)
            if listener.family != socket.AF_UNIX:
                notice_vanished(listener, self.wsgi.extensions["router"].client_write_timeout_s)
            handle = functools.partial(self._handle, address, listener)
            address.server = serve(listener, handle, self.worker_connections)
        while self.alive:
            self._report()
            full = [address for address in (self._clients, self._probes) if self._is_full(address)]
            for address in full:
                self._make_room(address, max(1, int(self.worker_connections * _PLACES_AT_ONCE)),
                                for_whom_waits=True)
            sleep(_FULL_TICK_S if full else _TICK_S)
        drain = Drain(self._in_flight, self._clients, self._probes,
                      self.cfg.graceful_timeout - _TICK_S)
        while not drain.step():
            self._report()
            sleep(_DRAIN_TICK_S)
        self._hang_ups.close()

    def load_wsgi(self) -> None:
        """Load the app; if a worker that replaces another one cannot, the others go on.

        gunicorn's master takes a worker that cannot load the app for the end, and ends all.
        """
        try:
            super().load_wsgi()
        except Exception as error:
            if self.age <= self.cfg.workers:
                raise
            # The master starts the next one as soon as this one has ended.
            why = str(error) if isinstance(error, ConfigError) else type(error).__name__
            logger.error("worker cannot start", extra={"why": why, "where": places(error)})
            sleep(_START_AGAIN_S)
            sys.exit(0)

    def _report(self) -> None:
        """Tell the master that this worker lives; without a master, end as if told to."""
        if self.alive and self.ppid != os.getppid():
            self.log.warning("master gone")
            self.alive = False
        # Not the gevent worker's own method, which ends a worker without a master at once.
        super(GeventWorker, self).notify()
        write_waiting_lines()

    def _handle(self, address: Address, listener: Any, client: Any, peer: Any) -> None:
        """Serve one connection."""
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        connection = ClientSocket(client, self._hang_ups, self._patience,
                                  health_only=address is self._probes)
        if self._is_full(address, with_one_more=True):
            # The next may be a probe.
            self._make_room(address, 1)
        address.connections.add(connection)
        try:
            self.handle(listener, connection, peer)
        finally:
            connection.idle_since = connection.spare_from = None
            address.connections.discard(connection)

    def _is_full(self, address: Address, with_one_more: bool = False) -> bool:
        return len(address.connections) + with_one_more >= self.worker_connections

    def _make_room(self, address: Address, places: int, for_whom_waits: bool = False) -> None:
        """End up to so many connections that wait for their client, those spare longest first.

        for_whom_waits  a request whose body comes well may end too, if a connection waits
        """
        now = time.monotonic()
        spare = [(connection.spare_from, id(connection), connection)
                 for connection in address.connections
                 if connection.spare_from is not None and connection.spare_from <= now]
        for _, _, connection in heapq.nsmallest(places, spare):
            connection.give_way()
        if address is self._clients and len(spare) < places:
            soon = any(each.spare_from is not None and each.spare_from <= now + _SOON_S
                       for each in address.connections)
            self._in_flight.make_room(
                for_whom_waits and not soon and readable(self.sockets[0]))

    def handle_request(self, listener_name: Any, req: Any, sock: ClientSocket, addr: Any) -> None:
        """Serve one request of a connection."""
        announces_body, closes = judge_head(req.version, req.headers)
        # gunicorn would send 100 Continue now, before anybody has looked at the request.
        invites, req._expected_100_continue = req._expected_100_continue, False
        sock.begin_request(req, announces_body, invites)
        if closes or self._is_full(self._probes if sock.health_only else self._clients):
            # An idle connection would keep the next client out of a full worker.
            sock.close_after_answer()
        try:
            self._answer(listener_name, req, sock, addr)
        except TimeoutError:
            raise StreamCut from None
        except StopIteration:
            if not req.body.failed:
                sock.linger_if_more_has_come()
            raise
        finally:
            # A part of the next request may have come along with this one.
            sock.end_request(req.unreader.take_buffered())
            if req.body.failed:
                sock.linger(_announced(req))

    def _answer(self, listener_name: Any, req: Any, sock: ClientSocket, addr: Any) -> None:
        """Have the app answer a request, and write what it says.

        Raises  StopIteration where the connection ends behind the answer; StreamCut where a defect
                breaks the answer off; whatever else the app or the socket raises

        In place of the base's own method, which also looks for hooks, for files and at the clock,
        and has an access log. SystemExit, of a worker that stood still, is a defect like others.
        """
        writer, environ = wsgi.create(req, sock, addr, listener_name, self.cfg, AnswerWriter)
        self.nr += 1
        if self.alive and self.nr >= self.max_requests:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        if not self.alive or not self.cfg.keepalive:
            writer.force_close()
        try:
            pieces = self.wsgi(environ, writer.start_response)
            try:
                for piece in pieces:
                    writer.write(piece)
                writer.close()
            finally:
                pieces.close()
        except OSError:
            raise
        except (Exception, SystemExit) as error:
            if not writer.headers_sent:
                raise
            _log_uncaught(error)
            raise StreamCut from None
        if writer.should_close():
            raise StopIteration

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that the server itself could not serve; log nothing of it."""
        if isinstance(exc, _QUIET_ENDS):
            return
        error = refusal_for(exc)
        fields = dict(req.headers) if req is not None else {}
        request_id = sane_request_id(fields.get("X-REQUEST-ID", ""))
        of_origin = self._fields_for_origin(fields.get("ORIGIN", ""))
        logger.log(logging.INFO if error.status < 500 else logging.ERROR, "request refused",
                   extra={"request_id": request_id, "status": error.status,
                          "why": exc.code if isinstance(exc, ApiError) else type(exc).__name__})
        # The client may have gone, or its place may be needed: nobody is left to be told.
        with contextlib.suppress(OSError, *_QUIET_ENDS):
            client.settimeout(_REFUSAL_WRITE_S)
            client.sendall(as_bytes(error, request_id, of_origin))
            client.linger(_announced(req) if req is not None else None)


def _announced(req: Any) -> int | None:
    """Return the length of a request's body as its head has it; None where it has none."""
    return next((int(value) for name, value in req.headers if name == "CONTENT-LENGTH"), None)


def _spare_the_garbage_collector() -> None:
    """Have the collector look at what is here now never again, and at the rest seldom.

    A full collection among 5,000 streams holds the event loop for 200 ms and finds nothing: a
    request leaves no cycles but some of werkzeug's, which are found young.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _log_uncaught(error: BaseException) -> None:
    logger.error("internal error", extra={
        "error": type(error).__name__, "where": places(error)})

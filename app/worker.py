"""The gunicorn worker: a gevent worker that keeps the router's promises at its edges.

The stock worker answers a request that it cannot parse with HTML that quotes it, and logs the
client's address. It cannot end a connection whose body is left unread without destroying its own
answer. It logs a traceback when a client stops reading. A long stream or an idle connection makes
the master kill it at shutdown. This worker does none of that.

gunicorn loads this module in the master, before gevent has patched anything. It may import
nothing that opens sockets.

Source: specs/002 R21, specs/006 W3, W11, specs/007 R2, R3.
"""

import email.utils
import functools
import gc
import logging
import os
import socket
import sys
import time
from typing import Any

from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http.errors import (ExpectationFailed, InvalidHeader, InvalidResponseHeader,
                                  InvalidResponseHeaderName, LimitRequestHeaders,
                                  LimitRequestLine, ParseException)
from gunicorn.workers.ggevent import GeventWorker

from app.client_socket import ClientSocket, HangUpWatch
from app.config import ConfigError
from app.dialing.liveness import notice_vanished
from app.draining import Address, Drain
from app.errors import ApiError, ClientGone, IdleTooLong, ShuttingDown, StreamCut
from app.eventloop import after_this_turn, report_uncaught, serve, sleep
from app.log_writer import write_lines_later, write_waiting_lines
from app.logs import places
from app.routing.headers import sane_request_id

logger = logging.getLogger(__name__)

# A refused client has this long, and this many bytes, to stop sending and read the answer.
_LINGER_S = 2.0
_LINGER_BYTES = 1024 * 1024
_REFUSAL_WRITE_S = 1.0
# How much may wait unsent in the kernel for a slow reader. Without this bound a socket takes
# megabytes, and then counts as stuck until a third of them has gone.
_UNSENT_BYTES = 64 * 1024
# How often a worker reports to the master and looks whether it is to end; how often it takes a
# step of its drain.
_TICK_S, _DRAIN_TICK_S = 0.25, 0.1
# Between two tries to start a worker that cannot load the app.
_START_AGAIN_S = 1.0
# A connection that was opened or used more recently is about to be used again.
_IDLE_LEAST_S = 1.0
# Objects made and not freed, then collections of the young and of the middle generation.
_COLLECT_AFTER = (10_000, 10, 50)

# gunicorn raises these where the app's own answer is at fault, not the request.
_OUR_FAULT = (InvalidResponseHeader, InvalidResponseHeaderName)
_REASONS: dict[type[Exception], tuple[int, str]] = {
    LimitRequestLine: (414, "The request line is too long."),
    ExpectationFailed: (417, "The expectation cannot be met."),
    LimitRequestHeaders: (431, "The header fields are too large."),
}
_PHRASES = {414: "URI Too Long", 417: "Expectation Failed",
            431: "Request Header Fields Too Large", 500: "Internal Server Error"}


class RouterLogger(Logger):
    """gunicorn's logger without its access log: the app writes a request's line itself."""

    def access(self, *_: Any) -> None:
        """Do nothing; the stock method collects header fields and addresses first."""


class RouterWorker(GeventWorker):
    """Serves connections like its base, with the differences named in the module's text."""

    alive: bool

    def run(self) -> None:
        """Accept connections until told to end, then drain."""
        write_lines_later(after_this_turn)
        report_uncaught(_log_uncaught)
        _spare_the_garbage_collector()
        self._hang_ups = HangUpWatch()
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
            self._make_room(for_one_more=False)
            sleep(_TICK_S)
        drain = Drain(self.wsgi.extensions["router"].in_flight, self._clients, self._probes,
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
        health_only = address is self._probes
        connection = ClientSocket(client, self._hang_ups, health_only=health_only)
        if not health_only:
            self._make_room()
        address.connections.add(connection)
        try:
            self.handle(listener, connection, peer)
        finally:
            connection.idle_since = None
            address.connections.discard(connection)

    def _is_full(self, with_one_more: bool = False) -> bool:
        return len(self._clients.connections) + with_one_more >= self.worker_connections

    def _make_room(self, for_one_more: bool = True) -> None:
        """Close the connection idle longest if no place is left: the next may be a probe."""
        if not self._is_full(for_one_more):
            return
        idle = {connection.idle_since: connection for connection in self._clients.connections
                if connection.idle_since is not None}
        if idle and min(idle) < time.monotonic() - _IDLE_LEAST_S:
            idle[min(idle)].close_if_idle()

    def handle_request(self, listener_name: Any, req: Any, sock: ClientSocket, addr: Any) -> None:
        """Serve one request of a connection."""
        sock.begin_request(req, _announces_body(req))
        if self._is_full():
            # An idle connection would keep the next client out.
            sock.close_after_answer()
        try:
            super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:
            raise StreamCut from None
        finally:
            # A part of the next request may have come along with this one.
            next_is_here = bool(req.unreader.buf.getbuffer().nbytes)
            sock.end_request(waits=not (req.body.failed or next_is_here))
            if req.body.failed:
                util.close_graceful(sock, _LINGER_S, _LINGER_BYTES)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that the server itself could not serve; log nothing of it."""
        if isinstance(exc, (ClientGone, ShuttingDown, IdleTooLong)):
            return
        if isinstance(exc, ParseException) and not isinstance(exc, _OUR_FAULT):
            status, message = _REASONS.get(type(exc), (400, "The request is not valid HTTP."))
            error = ApiError("bad_request", message, status=status)
        else:
            error = ApiError("internal_error", "Something went wrong in the router.")
        fields = dict(req.headers) if req is not None else {}
        request_id = sane_request_id(fields.get("X-REQUEST-ID", ""))
        logger.log(logging.INFO if error.status < 500 else logging.ERROR, "request refused",
                   extra={"request_id": request_id, "status": error.status,
                          "why": type(exc).__name__})
        try:
            client.settimeout(_REFUSAL_WRITE_S)
            client.sendall(_refusal(error, request_id))
            util.close_graceful(client, _LINGER_S, _LINGER_BYTES)
        except OSError:
            # The client has gone; nobody is left to be told.
            pass


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


def _announces_body(req: Any) -> bool:
    """Say whether a request announces a body; refuse what gunicorn's parser lets pass.

    Raises  InvalidHeader
    """
    names, announces = set(), False
    for name, value in req.headers:
        names.add(name)
        if name == "TRANSFER-ENCODING":
            if value.lower() != "chunked":
                # A body packed on the way would go upstream as if it had not been.
                raise InvalidHeader(name)
            announces = True
        elif name == "CONTENT-LENGTH":
            announces = announces or value != "0"
    if req.version >= (1, 1) and "HOST" not in names:
        raise InvalidHeader("HOST")  # RFC 9112 section 3.2
    return announces


def _refusal(error: ApiError, request_id: str) -> bytes:
    body = error.body()
    head = (f"HTTP/1.1 {error.status} {_PHRASES.get(error.status, 'Bad Request')}\r\n"
            f"Date: {email.utils.formatdate(usegmt=True)}\r\n"
            "Server: gunicorn\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    return head.encode("ascii") + body

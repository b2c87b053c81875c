"""The gunicorn worker: a gevent worker that keeps the router's promises at the edges.

What the stock worker does otherwise: it answers a request it cannot parse with HTML that quotes
it, and logs the client's address beside; it cannot end a connection whose body is left unread
without destroying its own answer; it logs a traceback when a client stops reading; and it ends by
being killed when a stream or an idle connection lasts.

gunicorn loads this module in the master, before gevent has patched anything: it may import
nothing that opens sockets of its own.

Source: specs/002 R21, specs/006 W3, W11, specs/007 R2, R3.
"""

import functools
import gc
import logging
import os
import socket
import time
from typing import Any

from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http.errors import (ExpectationFailed, InvalidHeader, InvalidResponseHeader,
                                  InvalidResponseHeaderName, LimitRequestHeaders,
                                  LimitRequestLine, ParseException)
from gunicorn.workers.ggevent import GeventWorker

from app.draining import Drain
from app.errors import ApiError, ClientGone, IdleTooLong, ShuttingDown, StreamCut
from app.eventloop import FairSocket, after_this_turn, nap, serve, tell_uncaught
from app.logs import places, write_lines_later, write_waiting_lines
from app.routing.headers import sane_request_id

logger = logging.getLogger(__name__)

# A refused client gets this long, and this many bytes, to stop sending and read the answer.
_LINGER_S = 2.0
_LINGER_BYTES = 1024 * 1024
_REFUSAL_WRITE_S = 1.0
# What may wait unsent in the kernel for a slow reader. Without it a socket takes megabytes and
# then counts as stuck until a third of them has gone.
_UNSENT_BYTES = 64 * 1024
# How often a worker tells the master that it lives and looks whether it is to end, and how often
# it looks then whether it can.
_TICK_S, _DRAIN_TICK_S = 0.25, 0.1
# A connection that has just been opened or used is about to be used.
_IDLE_LEAST_S = 1.0
# Objects made and not freed, then collections of the young and of the middle generation.
_COLLECT_AFTER = (10_000, 10, 50)

# Parse errors by their class, but of what the app wanted to send.
_OUR_FAULT = (InvalidResponseHeader, InvalidResponseHeaderName)
_REASONS: dict[type[Exception], tuple[int, str]] = {
    LimitRequestLine: (414, "The request line is too long."),
    ExpectationFailed: (417, "The expectation cannot be met."),
    LimitRequestHeaders: (431, "The header fields are too large."),
}


class RouterLogger(Logger):
    """gunicorn's logger without its access log: the app writes a request's line itself."""

    def access(self, *_: Any) -> None:
        """Do nothing; the stock method collects header fields and addresses first."""


class RouterWorker(GeventWorker):
    """Serves connections like its base, with the differences named in the module's text."""

    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of clients, and of those who come by the health address; each kind has its own number.
        self._connections: set[FairSocket] = set()
        self._probes: set[FairSocket] = set()

    def run(self) -> None:
        """Accept connections until told to end, then drain."""
        write_lines_later(after_this_turn)
        tell_uncaught(_log_uncaught)
        # What is here now stays, and need not be looked at again. A full collection among 5,000
        # streams holds the event loop for 200 ms and finds nothing: a request leaves no cycles
        # but some of werkzeug's, which are found young.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)
        servers = []
        for listener in self.sockets:
            listener.setblocking(True)
            servers.append(serve(listener, functools.partial(self.handle, listener),
                                 self.worker_connections))
        while self.alive:
            self.notify()
            self._make_room(for_one_more=False)
            nap(_TICK_S)
        drain = Drain(self.wsgi.extensions["router"].in_flight, self._connections, self._probes,
                      servers[:1], servers[1:], self.cfg.graceful_timeout - _TICK_S)
        while not drain.step():
            self.notify()
            nap(_DRAIN_TICK_S)

    def notify(self) -> None:
        """Tell the master that this worker lives; without a master, end as if told to."""
        if self.alive and self.ppid != os.getppid():
            self.log.warning("master gone")
            self.alive = False
        self.tmp.notify()
        write_waiting_lines()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        connection = FairSocket(client)
        # The second address, as gunicorn.conf.py binds them.
        connection.health_only = listener is not self.sockets[0]
        of_its_kind = self._probes if connection.health_only else self._connections
        if not connection.health_only:
            self._make_room()
        of_its_kind.add(connection)
        try:
            super().handle(listener, connection, addr)
        finally:
            connection.idle_since = None
            of_its_kind.discard(connection)

    def _is_full(self, with_one_more: bool = False) -> bool:
        return len(self._connections) + with_one_more >= self.worker_connections

    def _make_room(self, for_one_more: bool = True) -> None:
        """Where no place is left, close the connection idle longest: the next may be a probe."""
        if not self._is_full(for_one_more):
            return
        idle = {connection.idle_since: connection for connection in self._connections
                if connection.idle_since is not None}
        if idle and min(idle) < time.monotonic() - _IDLE_LEAST_S:
            idle[min(idle)].hear_no_more()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve one request of a connection."""
        sock.idle_since = None
        # Requests sent ahead are served without a wait between them.
        sock.share.take()
        _check_fields(req)
        body = req.body

        def abandon() -> None:
            # The app calls this through wsgi.input: the rest of the body stays unread.
            body.failed = True
            req.force_close()

        body.abandon, body.end_connection = abandon, req.force_close
        if self._is_full():
            # Nobody would be let in while this one idles.
            req.force_close()
        try:
            super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:
            raise StreamCut from None
        finally:
            # They and the body know each other, which only the garbage collector would end.
            del body.abandon, body.end_connection
            if body.failed:
                util.close_graceful(sock, _LINGER_S, _LINGER_BYTES)
            else:
                # The app limits its writes; the connection's next request is read without that.
                sock.settimeout(None)
                # Where some of the next request came along it is not waited for.
                ahead = req.unreader.buf.getbuffer().nbytes
                sock.idle_since = None if ahead else time.monotonic()

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
            # The client is gone; there is nobody left to tell.
            pass


def _log_uncaught(error: BaseException) -> None:
    logger.error("internal error", extra={
        "error": type(error).__name__, "where": places(error)})


def _check_fields(req: Any) -> None:
    """Refuse what gunicorn's parser lets pass. Raises InvalidHeader."""
    names = set()
    for name, value in req.headers:
        names.add(name)
        if name == "TRANSFER-ENCODING" and value.lower() != "chunked":
            # "gzip, chunked" would go up as if it had not been packed.
            raise InvalidHeader(name)
    if req.version >= (1, 1) and "HOST" not in names:
        raise InvalidHeader("HOST")  # RFC 9112 section 3.2


def _refusal(error: ApiError, request_id: str) -> bytes:
    body = error.body()
    head = (f"HTTP/1.1 {error.status} {_PHRASES.get(error.status, 'Bad Request')}\r\n"
            f"Date: {util.http_date()}\r\nServer: gunicorn\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    return head.encode("ascii") + body


_PHRASES = {414: "URI Too Long", 417: "Expectation Failed",
            431: "Request Header Fields Too Large", 500: "Internal Server Error"}

"""The gunicorn worker: a gevent worker that keeps the router's promises at the edges.

Three things the stock worker does otherwise: it answers a request it cannot parse with HTML that
quotes it, and logs the client's address beside; it cannot end a connection whose body is left
unread without destroying its own answer; it logs a traceback when a client stops reading.

gunicorn loads this module in the master, before gevent has patched anything: it may import
nothing that opens sockets of its own.

Source: specs/002 R21, specs/006 W3, W11.
"""

import logging
import socket
import uuid
from typing import Any

from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http.errors import (ExpectationFailed, InvalidHeader, InvalidResponseHeader,
                                  InvalidResponseHeaderName, LimitRequestHeaders,
                                  LimitRequestLine, ParseException)
from gunicorn.workers.ggevent import GeventWorker

from app.errors import ApiError, ClientGone, StreamCut
from app.eventloop import FairSocket

logger = logging.getLogger(__name__)

# A refused client gets this long, and this many bytes, to stop sending and read the answer.
_LINGER_S = 2.0
_LINGER_BYTES = 1024 * 1024
_REFUSAL_WRITE_S = 1.0
# What may wait unsent in the kernel for a slow reader. Without it a socket takes megabytes and
# then counts as stuck until a third of them has gone.
_UNSENT_BYTES = 64 * 1024

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

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        super().handle(listener, FairSocket(client), addr)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve one request of a connection."""
        # Requests sent ahead are served without a wait between them.
        sock.share.take()
        _check_fields(req)
        body = req.body

        def abandon() -> None:
            # The app calls this through wsgi.input: the rest of the body stays unread.
            body.failed = True
            req.force_close()

        body.abandon = abandon
        try:
            super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:
            raise StreamCut from None
        finally:
            if body.failed:
                util.close_graceful(sock, _LINGER_S, _LINGER_BYTES)
            else:
                # The app limits its writes; the connection's next request is read without that.
                sock.settimeout(None)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that the server itself could not serve; log nothing of it."""
        if isinstance(exc, ClientGone):
            return
        if isinstance(exc, ParseException) and not isinstance(exc, _OUR_FAULT):
            status, message = _REASONS.get(type(exc), (400, "The request is not valid HTTP."))
            error = ApiError("bad_request", message, status=status)
        else:
            error = ApiError("internal_error", "Something went wrong in the router.")
        logger.log(logging.INFO if error.status < 500 else logging.ERROR, "request refused",
                   extra={"status": error.status, "why": type(exc).__name__})
        try:
            client.settimeout(_REFUSAL_WRITE_S)
            client.sendall(_refusal(error))
            util.close_graceful(client, _LINGER_S, _LINGER_BYTES)
        except OSError:
            # The client is gone; there is nobody left to tell.
            pass


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


def _refusal(error: ApiError) -> bytes:
    body = error.body()
    head = (f"HTTP/1.1 {error.status} {_PHRASES.get(error.status, 'Bad Request')}\r\n"
            f"Date: {util.http_date()}\r\nServer: gunicorn\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nX-Request-Id: {uuid.uuid4().hex}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    return head.encode("ascii") + body


_PHRASES = {414: "URI Too Long", 417: "Expectation Failed",
            431: "Request Header Fields Too Large", 500: "Internal Server Error"}

"""The only door to the upstream.

What goes wrong below becomes one of two errors here: UpstreamFailed before the first body byte,
app.errors.BodyBroke after it.

Source: specs/002 R10-R15, R32, specs/006 W5.
"""

import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException

import requests
from urllib3.exceptions import HTTPError

from app.errors import BodyBroke
from app.eventloop import Deadline
from app.metrics import count, resends_total
from app.routing.model_field import Pieces
from app.routing.outcomes import Failure, UpstreamFailed
from app.upstream.body import Body
from app.upstream.connection import CLOSED_BY_PEER, Connection
from app.upstream.endpoint import Endpoint
from app.upstream.head import Head, InvalidMessage
from app.upstream.pool import Pool

# An error's body comes with its head, or soon after. Nobody waits longer to judge it.
_PEEK_S = 1.0
# What an exchange may raise before the response headers are here.
_EXCHANGE_ERRORS = (OSError, HTTPException, HTTPError, InvalidMessage)


class _Response(requests.Response):
    """A requests.Response with nothing but a body.

    Its own __init__ makes a cookie jar and more, which takes 7 µs and has no use here.
    """

    def __init__(self, raw: Body) -> None:
        self.raw = raw
        self._content_consumed = False


class UpstreamResponse:
    """A response whose headers are here and whose body is on its way.

    status, reason  of the status line
    fields          header fields as (name, value), in order, repeated ones kept
    resent          the request was sent a second time, the pooled connection being stale
    chunks          the body's bytes as they arrive; raises BodyBroke
    peeked          the bytes that `peek` has read, which `chunks` lacks
    whole           whether these are the whole body
    """

    def __init__(self, head: Head, body: Body, resent: bool, idle_timeout_s: float) -> None:
        self.status = head.status
        self.reason = head.reason
        self.fields = head.fields
        self.resent = resent
        self.peeked, self.whole = b"", False
        self._body = body
        self._idle_timeout_s = idle_timeout_s
        body.limit_silence(idle_timeout_s)
        self._response = _Response(body)
        self.chunks: Iterator[bytes] = self._response.iter_content(chunk_size=None)

    def first_chunk(self, timeout_s: float) -> bytes:
        """Wait for the first bytes of the body.

        timeout_s  total
        Returns    at least one byte
        Raises     UpstreamFailed: upstream_first_body_byte_timeout or _error
        """
        if self._body.has_begun:
            # It came with the headers, as small answers do. No timer is needed, which costs 5 µs.
            return next(self.chunks)
        self._body.limit_silence(None)
        try:
            with Deadline(timeout_s, lambda: UpstreamFailed(
                    Failure.FIRST_BODY_BYTE_TIMEOUT, "no body byte")):
                first = next(self.chunks)
        except StopIteration:
            raise UpstreamFailed(Failure.FIRST_BODY_BYTE_ERROR, "empty body") from None
        except BodyBroke as error:
            raise UpstreamFailed(Failure.FIRST_BODY_BYTE_ERROR, error.cause) from error
        self._body.limit_silence(self._idle_timeout_s)
        return first

    def peek(self, max_bytes: int) -> bytes:
        """Read the body, to its end, until more than `max_bytes` are here, or for a second.

        Peeking twice is free.

        Returns  what was read; `chunks` has the rest, or raises where the body broke off
        Cost     I/O; switches greenlets
        """
        chunks, until = self.chunks, time.monotonic() + _PEEK_S
        try:
            with Deadline(self._idle_timeout_s, lambda: BodyBroke("silence")):
                while not self.whole and len(self.peeked) <= max_bytes and (
                        self._body.comes_within(until - time.monotonic())):
                    chunk = next(chunks, b"")
                    self.peeked += chunk
                    self.whole = not chunk
        except BodyBroke as error:
            self.chunks = _broken(error.cause)
        return self.peeked

    @property
    def has_begun(self) -> bool:
        """Say whether bytes of the body are here that nobody has read."""
        return self._body.has_begun

    def close(self) -> None:
        """Close the connection, unless a complete body has given it back to the pool.

        Closing twice is harmless.
        """
        self._response.close()


def _broken(cause: str) -> Iterator[bytes]:
    """Return the rest of a body that broke off."""
    raise BodyBroke(cause)
    yield b""


class _Request:
    """A request on its way, and whether it has no connection yet."""

    __slots__ = "head", "body", "connecting"

    def __init__(self, head: bytes, body: Pieces) -> None:
        self.head, self.body, self.connecting = head, body, False

    def late(self) -> UpstreamFailed:
        """Return what it means that the header deadline is over now."""
        if self.connecting:
            # The connect timeout is the longer one. No model has heard of the request.
            return UpstreamFailed(Failure.UNREACHABLE, "ConnectFailed HeaderDeadline")
        return UpstreamFailed(Failure.HEADER_TIMEOUT, "no headers")


class Transport:
    """Sends requests to the upstream over pooled connections.

    endpoint        the upstream
    pool            of connections to it
    idle_timeout_s  longest silence within a body
    """

    def __init__(self, endpoint: Endpoint, pool: Pool, idle_timeout_s: float) -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._idle_timeout_s = idle_timeout_s
        self.drop_stale = self._pool.drop_stale

    def send(self, path: str, body: Pieces, headers: Mapping[str, str],
             header_timeout_s: float) -> UpstreamResponse:
        """Send a POST and wait for the response headers.

        path              below the base URL
        body              in pieces, sent as they are
        headers           the fields that cross, without Host and Content-Length
        header_timeout_s  total for connect, sending and waiting
        Returns           UpstreamResponse of any status; the caller closes it
        Raises            UpstreamFailed: upstream_connect_error, upstream_header_timeout
        Cost              I/O; switches greenlets
        """
        lines = [f"POST {self._endpoint.target(path)} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*self._endpoint.headers.items(),
                                                         *headers.items())]
        lines += [f"Content-Length: {sum(map(len, body))}", "", ""]
        request = _Request("\r\n".join(lines).encode("latin-1"), body)
        began, pooled = time.monotonic(), self._pool.take()
        try:
            with Deadline(header_timeout_s, request.late):
                if pooled is None:
                    return self._on_a_fresh_one(request, resent=False)
                return self._on_a_pooled_one(pooled, began, request)
        except UpstreamFailed:
            if pooled is not None:
                self._pool.drop_opened_before(began)
            raise

    def _on_a_pooled_one(self, connection: Connection, began: float,
                         request: _Request) -> UpstreamResponse:
        """Exchange on a pooled connection; once more on a fresh one where it was stale.

        A pooled connection that the upstream closed while it was idle is no failure of the
        upstream.
        """
        try:
            return self._respond(connection, request, resent=False)
        except _EXCHANGE_ERRORS as error:
            if not isinstance(error, CLOSED_BY_PEER) or not connection.was_idle_too_long:
                raise _failed(Failure.CONNECTION_LOST, "ExchangeBroke", error) from error
        self._pool.drop_opened_before(began)
        return self._on_a_fresh_one(request, resent=True)

    def _on_a_fresh_one(self, request: _Request, resent: bool) -> UpstreamResponse:
        request.connecting = True
        try:
            connection = self._pool.open()
        except _EXCHANGE_ERRORS as error:
            raise _failed(Failure.UNREACHABLE, "ConnectFailed", error) from error
        request.connecting = False
        if resent:
            count(resends_total)
        try:
            return self._respond(connection, request, resent)
        except _EXCHANGE_ERRORS as error:
            what = "ResendBroke" if resent else "ExchangeBroke"
            raise _failed(Failure.CONNECTION_LOST, what, error) from error

    def _respond(self, connection: Connection, request: _Request,
                 resent: bool) -> UpstreamResponse:
        try:
            answer, early = connection.exchange(request.head, request.body)
            raw = Body(connection, answer, early, self._pool.give_back)
            return UpstreamResponse(answer, raw, resent, self._idle_timeout_s)
        except BaseException:
            connection.close()
            raise


def _failed(failure: Failure, what: str, error: Exception) -> UpstreamFailed:
    """Return the failure with the names of the errors that led to it; no text of theirs."""
    names = [what, type(error).__name__]
    if error.__cause__ is not None:
        names.append(type(error.__cause__).__name__)
    return UpstreamFailed(failure, " ".join(names))

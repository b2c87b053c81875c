"""One request and its response on a connected socket.

What goes over the socket and what is taken for an answer is decided here and in app.upstream.wire.
http.client would take an end of the stream inside the headers for their end, and an interim
response for the final one.

Source: specs/002 R13, R14; specs/006 W5-W10.
"""

import socket
import ssl
import struct
import time
from collections.abc import Callable, Generator

from app.errors import BodyBroke
from app.eventloop import FairShare, readable
from app.routing.model_field import Pieces
from app.upstream import wire

# One read takes at most this much: the small chunks of a fast upstream come in by the dozen, and
# the smallest of chunks hold the event loop for a few milliseconds only.
_READ_SIZE = 16 * 1024
# A body up to this size leaves in one packet with its head, which saves 7 µs. A larger one is not
# copied for that.
_SMALL_BODY = 16 * 1024
# struct linger {on, 0 seconds}: closing the socket then resets the connection.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Real servers send a few interim responses at most.
_MOST_INTERIM = 16


class Disconnected(OSError):
    """The upstream closed the connection before the response head was whole."""


# What an idle connection that the upstream has closed meanwhile does to the request sent on it.
CLOSED_BY_PEER = (Disconnected, ConnectionResetError, BrokenPipeError)


class Connection:
    """A connected socket that carries one request after another.

    has_heard  a byte of a response to the current request has come
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = False
        self.has_heard = False

    def is_quiet(self) -> bool:
        """Say whether nothing has come on the idle connection: no end, no unasked byte."""
        return not readable(self._sock)

    def exchange(self, head: bytes, body: Pieces) -> tuple[wire.Head, bytes]:
        """Send a request and wait for the response head.

        head     up to and with its empty line
        Returns  the head, and what has come of the body with it
        Raises   OSError, wire.InvalidMessage
        Cost     I/O; switches greenlets
        """
        self.has_heard = False
        self.limit_silence(None)
        try:
            self._send(head, body)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # The upstream may have answered without reading all of it.
            pass
        return self._read_head()

    def _send(self, head: bytes, body: Pieces) -> None:
        self._sending = True
        small = sum(map(len, body)) < _SMALL_BODY
        for part in [b"".join([head, *body])] if small else [head, *body]:
            # sendall() asks for the size of the kernel's buffer first, which is seldom needed.
            sent = self._sock.send(part)
            if sent < len(part):
                self._sock.sendall(memoryview(part)[sent:])
        self._sending = False

    def _read_head(self) -> tuple[wire.Head, bytes]:
        data = b""
        for _ in range(_MOST_INTERIM):
            while (end := data.find(b"\r\n\r\n")) < 0:
                if len(data) > wire.LARGEST_HEAD:
                    raise wire.InvalidMessage("head too large")
                data += self._read_some_head()
            head, data = wire.parse_head(data[:end + 4]), data[end + 4:]
            if not head.interim:
                return head, data
        raise wire.InvalidMessage("too many interim responses")

    def _read_some_head(self) -> bytes:
        try:
            data = self.read()
        except ssl.SSLError as error:
            # Before the body an end is an end, with close_notify, without it, or by a reset. The
            # releases of Python 3.11 report it in different ways.
            if (not isinstance(error, ssl.SSLEOFError)
                    and error.reason != "UNEXPECTED_EOF_WHILE_READING"):
                raise
            data = b""
        if not data:
            raise Disconnected("closed before the response head was whole")
        self.has_heard = True
        return data

    def read(self) -> bytes:
        """Return what has come, at least one byte; nothing at the end of the stream."""
        return self._sock.recv(_READ_SIZE)

    def limit_silence(self, seconds: float | None) -> None:
        """Set how long one read or write may take; None: for ever."""
        self._sock.settimeout(seconds)

    def close(self) -> None:
        """Close, at once even where the upstream has not taken all of the request."""
        if self._sending:
            # An orderly end would wait behind the unsent rest, perhaps for ever.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._sending = False
        self._sock.close()


class Body:
    """A response body as it arrives, in whichever framing, never decoded.

    It is the `raw` of a requests.Response, whose iter_content calls `stream`.

    connection  the body's; it is closed, or given back after a complete body
    early       what has come of the body with the head
    give_back   takes the connection when it may serve another request
    """

    def __init__(self, connection: Connection, head: wire.Head, early: bytes,
                 give_back: Callable[[Connection], None]) -> None:
        self._reader = wire.body_reader(head)
        self._connection: Connection | None = connection
        self._give_back = give_back
        self._keeps_alive = head.keeps_alive
        self._early = self._reader.feed(early) if early else b""
        self._only_framing = bool(early) and not self._early
        self._silence_limit_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Say whether a byte of the body is here already: reading it will not wait."""
        return bool(self._early)

    def limit_silence(self, seconds: float | None) -> None:
        """Set how long the body may go without a byte; None: for ever."""
        self._silence_limit_s = seconds
        if self._connection is not None:
            self._connection.limit_silence(seconds)

    def stream(self, _amt: int | None = None,
               decode_content: bool | None = None) -> Generator[bytes, None, None]:
        """Yield the body's bytes as they arrive; the arguments are requests' and change nothing.

        Raises  BodyBroke

        At the end of a complete body the connection is given back; otherwise it is closed, for
        whatever reason the iteration ends. A body without a byte closes it too: such a success is
        an abandoned attempt, and the upstream is to see that.
        """
        reader, piece, empty = self._reader, self._early, True
        share, quiet_since, only_framing = FairShare(), time.monotonic(), self._only_framing
        try:
            while True:
                if piece:
                    empty = False
                    yield piece
                    quiet_since = time.monotonic()
                if reader.broken:
                    raise BodyBroke(reader.broken)
                if reader.complete:
                    break
                share.take()
                data = self._read(quiet_since if only_framing else None)
                piece = reader.feed(data) if data else b""
                only_framing = bool(data) and not piece
                if not data:
                    reader.end_of_stream()
        except TimeoutError as error:
            raise BodyBroke("silence") from error
        except OSError as error:
            raise BodyBroke("reset") from error
        finally:
            self._finish(reusable=reader.complete and not reader.surplus and not empty)

    def _read(self, quiet_since: float | None) -> bytes:
        """Read what is there; `quiet_since` is set where framing came but no byte of the body."""
        assert self._connection is not None, "a closed body is not iterated"
        if quiet_since is None or self._silence_limit_s is None:
            return self._connection.read()
        # Dripped framing is no sign of life: the wait goes on where it was.
        left_s = self._silence_limit_s - (time.monotonic() - quiet_since)
        if left_s <= 0:
            raise TimeoutError
        self._connection.limit_silence(left_s)
        try:
            return self._connection.read()
        finally:
            self._connection.limit_silence(self._silence_limit_s)

    def _finish(self, reusable: bool) -> None:
        connection = self._connection
        if connection is not None and reusable and self._keeps_alive:
            self._connection = None
            self._give_back(connection)
        self.close()

    def close(self) -> None:
        """Close the connection unless it has been given back. Closing twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

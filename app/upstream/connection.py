"""One request and its response on a pooled connection.

urllib3 makes connections, through TLS and proxies; what goes over the socket, and what is taken
for an answer, is decided here. http.client would take an end of stream inside the headers for
their end, an interim response for the final one, and would not say whether a connection had
been used before.

Source: specs/002 R13, R14; specs/006 W5-W10.
"""

import socket
import ssl
import struct
import time
import traceback
from collections.abc import Generator, Mapping
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPHeaderDict, HTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, ProtocolError

from app.eventloop import Deadline, FairShare, readable
from app.metrics import count, resends_total
from app.upstream import wire

# What one read takes at most: enough that a fast upstream's chunks come in by the dozen, and
# little enough that the smallest of chunks hold the event loop for a few milliseconds only.
_READ_SIZE = 16 * 1024
# Up to here a body goes out in one packet with its head, which is worth 7 µs; a larger one is not
# copied for that.
_SMALL_BODY = 16 * 1024
# struct linger {on, 0 seconds}: closing the socket then resets the connection.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Interim responses before the final one; no real server sends more than a few.
_MOST_INTERIM = 16


class BodyBroke(ProtocolError):
    """A body broke off; `cause` is one of short, bad_framing, silence, reset."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"body broke off: {cause}")
        self.cause = cause


class Disconnected(OSError):
    """The upstream closed the connection before the response head was whole."""


class RawResponse(HTTPResponse):
    """A response whose body comes as it arrives, in whichever framing, never decoded.

    fields  the header fields as (name, value), in order, repeated ones kept
    resent  the request was sent a second time, the pooled connection having been stale
    """

    def __init__(self, connection: "_Exchange", head: wire.Head, rest: bytes) -> None:
        super().__init__(status=head.status, reason=head.reason, headers=HTTPHeaderDict(),
                         preload_content=False, decode_content=False)
        self.fields = head.fields
        self.resent = connection.resent
        self._keeps_alive = head.keeps_alive
        self._body_reader = wire.body_reader(head)
        # What of the body came with the head.
        self._early = self._body_reader.feed(rest) if rest else b""
        self._only_framing = bool(rest) and not self._early
        self._wire_socket: socket.socket = connection.sock
        self._silence_limit_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Say whether a byte of the body is here already: reading it will not wait."""
        return bool(self._early)

    def belongs_to(self, pool: HTTPConnectionPool, connection: HTTPConnection) -> None:
        """Take note where the connection goes when the body has been read."""
        self._pool = pool
        self._connection = connection

    def limit_silence(self, seconds: float | None) -> None:
        """Set how long the body may go without a byte; None is for ever."""
        self._silence_limit_s = seconds
        self._wire_socket.settimeout(seconds)

    def stream(self, amt: int | None = None,
               decode_content: bool | None = None) -> Generator[bytes, None, None]:
        """Yield the body's bytes as they arrive; the arguments are requests' and do not matter.

        Raises  BodyBroke

        The connection goes back to its pool at the end of a complete body, and is closed
        otherwise, whatever the reason for leaving. A body without a byte closes it too: a
        success like that is an abandoned attempt, and the upstream is to see it.
        """
        reader, piece, empty = self._body_reader, self._early, True
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
                data = self._receive(quiet_since if only_framing else None)
                piece = reader.feed(data) if data else b""
                only_framing = bool(data) and not piece
                if not data:
                    reader.end_of_stream()
        except TimeoutError as error:
            raise BodyBroke("silence") from error
        except OSError as error:
            raise BodyBroke("reset") from error
        finally:
            reusable = reader.complete and not reader.surplus and self._keeps_alive
            if (empty or not reusable) and self._connection is not None:
                self._connection.close()
            self.release_conn()

    def _receive(self, quiet_since: float | None) -> bytes:
        """Read what is there; `quiet_since` is set where framing came but no byte of the body."""
        if quiet_since is None or self._silence_limit_s is None:
            return self._wire_socket.recv(_READ_SIZE)
        # Dripped framing is no sign of life: the wait goes on where it was.
        left_s = self._silence_limit_s - (time.monotonic() - quiet_since)
        if left_s <= 0:
            raise TimeoutError
        self._wire_socket.settimeout(left_s)
        try:
            return self._wire_socket.recv(_READ_SIZE)
        finally:
            self._wire_socket.settimeout(self._silence_limit_s)


class _Exchange(HTTPConnection):
    """What both kinds of connection do differently from urllib3's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connect_timeout_s = float(self.timeout or 0)
        self._message: list[bytes | memoryview] = []
        self._uses = 0
        self._sending = False
        self.resent = False

    @property
    def is_connected(self) -> bool:
        """Say whether the idle connection is still good: bytes nobody asked for make it bad."""
        return self.sock is not None and not readable(self.sock)

    def connect(self) -> None:
        """Look up, connect and, for https, shake hands, all within the connect timeout."""
        try:
            with Deadline(self._connect_timeout_s,
                          lambda: ConnectTimeoutError(self, "connect timeout")):
                super().connect()
        except BaseException as error:
            # A socket in the middle of its handshake is known to the frames below only: without
            # this it would stay open until the garbage collector came by.
            traceback.clear_frames(error.__traceback__)
            raise
        if isinstance(self.sock, ssl.SSLSocket):
            # An end without TLS's own word for it may be anybody's: it must not pass for the end
            # of a body that lasts until the connection closes.
            self.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        # From here on the caller's deadline holds; the socket's own would cut a slow send.
        self.sock.settimeout(None)
        self._uses = 0

    def request(self, method: str, url: str, body: Any = None,  # type: ignore[override]
                headers: Mapping[str, str] | None = None, **_: Any) -> None:
        """Send a request.

        body     Pieces
        headers  with Host; Content-Length is added
        """
        if self.sock is None:
            self.connect()
        length = sum(map(len, body))
        lines = [f"{method} {url} HTTP/1.1", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        self._message = [b"".join([head, *body])] if length < _SMALL_BODY else [head, *body]
        self._uses += 1
        self.resent = False
        self.sock.settimeout(None)
        self._send_message()

    def _send_message(self) -> None:
        self._sending = True
        for part in self._message:
            # sendall() would first ask for the size of the kernel's buffer, which is seldom needed.
            sent = self.sock.send(part)
            if sent < len(part):
                self.sock.sendall(memoryview(part)[sent:])
        self._sending = False

    def close(self) -> None:
        """Close, at once even where the upstream has not taken all of the request."""
        if self._sending and self.sock is not None:
            # An orderly end would wait its turn behind the unsent rest, perhaps for ever.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._sending = False
        super().close()

    def getresponse(self) -> RawResponse:  # type: ignore[override]
        """Wait for the response head.

        Returns  RawResponse
        Raises   OSError, InvalidMessage wrapped in ProtocolError

        A connection that had served before and is found closed was closed while idle: that is
        no failure of the upstream, and the request is sent once more on a fresh connection.
        """
        try:
            try:
                head, rest = self._read_head()
            except (Disconnected, ConnectionResetError, BrokenPipeError):
                if self._uses == 1 or self._received:
                    raise
                self._resend()
                head, rest = self._read_head()
            self._message = []
            return RawResponse(self, head, rest)
        except wire.InvalidMessage as error:
            raise ProtocolError(f"invalid response: {error}", error) from error

    def _resend(self) -> None:
        # Not close(): that would also forget the tunnel through a proxy.
        self.sock.close()
        self._sending = False
        self.connect()
        self._uses += 1
        self.resent = True
        count(resends_total)
        self._send_message()

    def _read(self) -> bytes:
        try:
            return self.sock.recv(_READ_SIZE)
        except ssl.SSLError as error:
            # Before the body an end is an end, with TLS's own word for it or without, or by a
            # reset. How that is said differs between the 3.11 releases.
            if (isinstance(error, ssl.SSLEOFError)
                    or error.reason == "UNEXPECTED_EOF_WHILE_READING"):
                return b""
            raise

    def _read_head(self) -> tuple[wire.Head, bytes]:
        data = b""
        self._received = False
        for _ in range(_MOST_INTERIM):
            while (end := data.find(b"\r\n\r\n")) < 0:
                if len(data) > wire.LARGEST_HEAD:
                    raise wire.InvalidMessage("head too large")
                more = self._read()
                if not more:
                    raise Disconnected("closed before the response head was whole")
                self._received = True
                data += more
            head, data = wire.parse_head(data[:end + 4]), data[end + 4:]
            if not head.interim:
                return head, data
        raise wire.InvalidMessage("too many interim responses")


class HttpConnection(_Exchange):
    """A plain connection."""


class HttpsConnection(_Exchange, HTTPSConnection):
    """A TLS connection."""

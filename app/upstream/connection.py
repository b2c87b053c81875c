"""One request and its response on a connected socket.

What goes over the socket is decided here, what is taken for an answer in app.upstream.head and
app.upstream.wire. http.client would take an end of the stream inside the headers for their end, and
an interim response for the final one.

Source: specs/002 R13, R14, R33; specs/006 W5-W9.
"""

import itertools
import socket
import ssl
import struct
import time
from collections.abc import Callable

from app.dialing.dialer import Dialed
from app.eventloop import Arrival, FairShare, readable, wait_until_ready
from app.routing.model_field import Pieces
from app.upstream.head import Head, HeadReader

# One read takes at most this much: the small chunks of a fast upstream come in by the dozen, and
# the smallest of chunks hold the event loop for a few milliseconds only.
_READ_SIZE = 16 * 1024
# A body up to this size leaves in one packet with its head, which saves 7 µs. A larger one is not
# copied for that.
_SMALL_BODY = 16 * 1024
# At most this much of a larger one is sent at once. Without TLS the kernel takes what it has room
# for. TLS sends a whole piece and waits for room, where it hears no answer: a piece is one record,
# for which a socket that takes data has room as a rule.
_PLAIN_PIECE, _TLS_PIECE = 256 * 1024, 16 * 1024
# Others have a turn after so many pieces.
_PIECES_IN_A_ROW = 8
# struct linger {on, 0 seconds}: closing the socket then resets the connection.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# A connection that ends this soon after sending began had been closed before the request came: a
# reset follows the first packet. Later the upstream may have begun to work on the request.
_END_MEANS_STALE_S = 1.0


class Disconnected(OSError):
    """The upstream closed the connection before the response head was whole."""


# What an idle connection that the upstream has closed meanwhile does to the request sent on it.
CLOSED_BY_PEER = (Disconnected, ConnectionResetError, BrokenPipeError)


class Connection:
    """A connected socket that carries one request after another.

    dialed      what it is connected to
    opened_at   seconds on the monotonic clock
    idle_since  when it was given back to its pool
    """

    def __init__(self, sock: socket.socket, dialed: Dialed) -> None:
        self._sock = sock
        self.dialed = dialed
        # True of a TLS connection, and of TLS within a proxy's TLS.
        self._has_tls = hasattr(sock, "cipher")
        # Without TLS that of the kernel's socket, which never waits: Arrival does that.
        self._receive = sock.recv if self._has_tls else getattr(sock, "_sock", sock).recv
        # Of TLS, bytes may be here that the kernel has no more; TLS within TLS does not tell.
        self._unread = getattr(sock, "pending", None) if self._has_tls else lambda: 0
        self._arrival = Arrival(sock)
        self._silence_s: float | None = None
        # The last read has taken all that was there: the next one waits first.
        self._drained = self._unread is not None
        self._sending = False
        self._heads = HeadReader()
        self.opened_at = self.idle_since = self._began_at = time.monotonic()

    def is_quiet(self) -> bool:
        """Say whether nothing has come on the idle connection: no end, no unasked byte."""
        return not readable(self._sock)

    @property
    def was_idle_too_long(self) -> bool:
        """Say whether the end that has just come had nothing to do with the request."""
        return (not self._heads.has_begun
                and time.monotonic() - self._began_at <= _END_MEANS_STALE_S)

    def exchange(self, head: bytes, body: Pieces) -> tuple[Head, bytes]:
        """Send a request and wait for the response head.

        head     up to and with its empty line
        Returns  the head, and what has come of the body with it
        Raises   OSError, InvalidMessage
        Cost     I/O; switches greenlets
        """
        self._heads, self._began_at, answer = HeadReader(), time.monotonic(), None
        self.limit_silence(None)
        try:
            answer = self._send(head, body)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # The upstream may have answered without reading all of it.
            pass
        while answer is None:
            answer = self._heads.feed(self._checked(self.read))
        return answer

    def _send(self, head: bytes, body: Pieces) -> tuple[Head, bytes] | None:
        """Send until all is sent or a final answer begins; return that if it is here whole."""
        self._sending = True
        small = sum(map(len, body)) < _SMALL_BODY
        parts = [b"".join([head, *body])] if small else [head, *body]
        # The kernel takes all of it as a rule: nobody looks for an answer before.
        sent = self._sock.send(parts[0])
        if not small or sent < len(parts[0]):
            for part in (parts[0][sent:], *parts[1:]):
                answer = self._send_large(memoryview(part))
                if answer is not None or self._heads.in_final:
                    return answer
        self._sending = False
        return None

    def _send_large(self, left: memoryview) -> tuple[Head, bytes] | None:
        """Send a piece of a large body, as `_send` does, listening for an answer."""
        share, size = FairShare(), _TLS_PIECE if self._has_tls else _PLAIN_PIECE
        for number in itertools.count(1):
            if not left:
                break
            if number % _PIECES_IN_A_ROW == 0:
                share.take()
            if not wait_until_ready(self._sock):
                left = left[self._sock.send(left[:size]):]
            elif (answer := self._hear()) is not None or self._heads.in_final:
                return answer
        return None

    def _hear(self) -> tuple[Head, bytes] | None:
        """Read what is here of the answer, in the middle of sending; no wait."""
        # TLS would wait for the rest of a record.
        self.limit_silence(0.0)
        try:
            data = self._checked(self._read_now)
        except (BlockingIOError, ssl.SSLWantReadError):
            # A part of a TLS record, or one that is TLS's own.
            return None
        finally:
            self.limit_silence(None)
        return self._heads.feed(data)

    @staticmethod
    def _checked(read: Callable[[], bytes]) -> bytes:
        """Read some of a head."""
        try:
            data = read()
        except ssl.SSLError as error:
            # Before the body an end is an end, with close_notify, without it, or by a reset. The
            # releases of Python 3.11 report it in different ways.
            if (not isinstance(error, ssl.SSLEOFError)
                    and error.reason != "UNEXPECTED_EOF_WHILE_READING"):
                raise
            data = b""
        if not data:
            raise Disconnected("closed before the response head was whole")
        return data

    def read(self) -> bytes:
        """Wait for what comes: at least one byte, or none at the end of the stream."""
        if self._has_tls:
            return self._read_of_record()
        while True:
            if self._drained:
                self._arrival.wait(self._silence_s)
            try:
                data = self._receive(_READ_SIZE)
            except BlockingIOError:
                self._drained = True
            else:
                self._drained = len(data) < _READ_SIZE
                return data

    def _read_of_record(self) -> bytes:
        """Read what a TLS record holds. A record that is dripped is silence until it is whole."""
        silence_s, began = self._silence_s, time.monotonic()
        self._sock.settimeout(0.0)
        try:
            while True:
                if self._drained:
                    self._arrival.wait(
                        silence_s and max(0.0, began + silence_s - time.monotonic()))
                try:
                    return self._read_now()
                except (BlockingIOError, ssl.SSLWantReadError):
                    self._drained = True
        finally:
            self._sock.settimeout(silence_s)

    def comes_within(self, seconds: float) -> bool:
        """Wait until there is something to read; say whether there is in time."""
        try:
            if self._drained:
                self._arrival.wait(seconds)
        except TimeoutError:
            return False
        return True

    def _read_now(self) -> bytes:
        data = self._receive(_READ_SIZE)
        self._drained = (self._unread is not None and len(data) < _READ_SIZE
                         and not self._unread())
        return data

    def limit_silence(self, seconds: float | None) -> None:
        """Set how long one read or write may take; None: for ever."""
        self._silence_s = seconds
        self._sock.settimeout(seconds)

    @property
    def is_reusable(self) -> bool:
        """Say whether the upstream has been sent the whole of the request."""
        return not self._sending

    def close(self) -> None:
        """Close, at once even where the upstream has not taken all of the request."""
        if self._sending:
            # An orderly end would wait behind the unsent rest, perhaps for ever. TLS within a
            # proxy's TLS has no options of its own.
            inner = getattr(self._sock, "socket", self._sock)
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._sending = False
        self._arrival.close()
        self._sock.close()

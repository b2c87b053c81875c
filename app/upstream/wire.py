"""HTTP/1.1 response bodies as bytes, in each framing. No I/O.

Theory. The framing says which bytes belong to which response. It is judged as strictly as nginx
judges it: a response whose length can be read in two ways is refused. Bodies are never decoded.
A body that ends early is `broken`, not `complete`, so that the client can be shown the difference.

A body reader is given the connection's bytes with `feed(data)`, which returns the body's bytes
among them. `end_of_stream()` says that the connection has ended. Neither raises: good bytes that
arrive together with bad ones still go to the client.

Source: specs/006 W7-W10; RFC 9112 sections 4 to 7.
"""

import re
from typing import Protocol

from app.upstream.head import TEXT, TOKEN, Head, InvalidMessage

_LARGEST_CHUNK_LINE = 4 * 1024
_LARGEST_TRAILER = 16 * 1024

# Why a body is broken: the connection ended inside it, or its chunks are not chunks.
SHORT = "short"
BAD_FRAMING = "bad_framing"

_DIGITS = re.compile(r"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rf"([0-9A-Fa-f]{{1,16}})[ \t]*(?:;{TEXT})?\r\n".encode("latin-1"))
_TRAILERS = re.compile(rf"(?:{TOKEN}:{TEXT}\r\n)*".encode("latin-1"))


class BodyReader(Protocol):
    """Finds the end of one body; the module's docstring says how it is used.

    complete  the body has ended properly
    surplus   the connection cannot be used again: bytes follow the body, or it has ended
    broken    SHORT or BAD_FRAMING; empty while the body is sound
    """

    complete: bool
    surplus: bool
    broken: str

    def feed(self, data: bytes) -> bytes:
        """Return the body's bytes in `data`, which is not empty.

        Where the framing is bad, the bytes before that place are still returned.
        """

    def end_of_stream(self) -> None:
        """Note that the connection has ended."""


def body_reader(head: Head) -> BodyReader:
    """Choose the reader for a final response by its framing.

    Returns  BodyReader
    Raises   InvalidMessage where nginx would refuse the response

    Source: specs/006 W8; RFC 9112 section 6.3.
    """
    lengths, codings = head.values("content-length"), head.values("transfer-encoding")
    if codings:
        if len(codings) > 1 or codings[0].lower() != "chunked":
            raise InvalidMessage("unknown or repeated transfer encoding")
        if lengths or head.minor < 1:
            raise InvalidMessage("transfer encoding beside content length or in HTTP/1.0")
    if len(lengths) > 1 or lengths and not _DIGITS.fullmatch(lengths[0]):
        raise InvalidMessage("bad or repeated content length")
    if head.status in (204, 304):
        return LengthBody(0)
    if codings:
        return ChunkedBody()
    return LengthBody(int(lengths[0])) if lengths else UntilCloseBody()


class LengthBody:
    """A body of known length, in bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = length == 0
        self.surplus = False
        self.broken = ""

    def feed(self, data: bytes) -> bytes:
        """Return the body's bytes in `data`."""
        if len(data) < self._left:
            self._left -= len(data)
            return data
        body, self.surplus = data[:self._left], len(data) > self._left
        self._left, self.complete = 0, True
        return body

    def end_of_stream(self) -> None:
        """Note that bytes are missing."""
        self.broken = SHORT


class UntilCloseBody:
    """A body that lasts until its connection ends. The connection is never used again."""

    def __init__(self) -> None:
        self.complete = False
        self.surplus = False
        self.broken = ""

    def feed(self, data: bytes) -> bytes:
        """Return `data`: all of it is the body's."""
        return data

    def end_of_stream(self) -> None:
        """Take the end of the connection for the end of the body."""
        self.complete = self.surplus = True


class ChunkedBody:
    """A chunked body. Trailers are read and dropped.

    The chunks of one `feed` are returned as one piece: the client gets each byte at once, but in
    fewer pieces than the upstream sent.
    """

    def __init__(self) -> None:
        self.complete = False
        self.surplus = False
        self.broken = ""
        self._held = b""        # the beginning of a line, or trailers
        self._left = 0          # bytes to come of the current chunk and of the CRLF after it
        self._trailing = False  # the last chunk has been read

    def feed(self, data: bytes) -> bytes:
        """Return the body's bytes in `data`. Cost: about 0.4 µs a chunk."""
        data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at = self._continue_chunk(data, 0, pieces) if self._left else 0
        while at < len(data) and not self._left and not self._trailing and (
                line := _CHUNK_LINE.match(data, at)):
            at, size = line.end(), int(line[1], 16)
            end = at + size
            if size and data[end:end + 2] == b"\r\n":  # the chunk is here whole, as nearly always
                pieces.append(data[at:end])
                at = end + 2
            else:
                self._left, self._trailing = size and size + 2, not size
                at = self._continue_chunk(data, at, pieces)
        if at < len(data):
            self._hold(data[at:])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _continue_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take what is here of the current chunk and its CRLF; return where that ends."""
        if self._left > 2:
            piece = data[at:at + self._left - 2]
            pieces.append(piece)
            at += len(piece)
            self._left -= len(piece)
        if self._left == 2 and data.startswith(b"\r\n", at):
            at, self._left = at + 2, 0
        return at

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a line; mark the body as broken if no line begins like that."""
        self._held = rest
        if self._trailing:
            self._hold_trailers(rest)
        elif self._left:
            self.broken = "" if rest == b"\r" else BAD_FRAMING
        elif b"\n" in rest or len(rest) > _LARGEST_CHUNK_LINE:
            self.broken = BAD_FRAMING

    def _hold_trailers(self, rest: bytes) -> None:
        trailers = _TRAILERS.match(rest)
        assert trailers is not None, "no trailer at all is a match"
        end = trailers.end()
        if rest.startswith(b"\r\n", end):
            self.complete, self.surplus, self._held = True, len(rest) > end + 2, b""
        elif b"\n" in rest[end:] or len(rest) > _LARGEST_TRAILER:
            self.broken = BAD_FRAMING

    def end_of_stream(self) -> None:
        """Note that the body has ended before its last chunk."""
        self.broken = SHORT

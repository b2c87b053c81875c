"""What has come of a connection's next request while its head is not whole.

Empty lines before a request line begin no request (RFC 9112 section 2.2): some clients send one
behind a body.

Source: specs/002 R40.
"""

import dataclasses
import re

from app.errors import ApiError, IdleTooLong

_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
# Of empty lines before one head. Whoever sends more of them asks for nothing.
_MAX_EMPTY_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a client may take, and how much it may send before it has asked for anything.

    idle_s      without a request
    head_s      from the first byte of a request's head to its last
    head_bytes  of a head that is not whole
    rest_bytes  of a refused request, where it does not announce how much is to come
    """

    idle_s: float
    head_s: float
    head_bytes: int
    rest_bytes: int


class NextHead:
    """Judges the bytes between two requests by their time and number.

    has_begun  a byte of the head is here
    ahead      bytes that came with the request before, and have not been judged
    """

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self.start(b"", now)

    def start(self, ahead: bytes, now: float) -> None:
        """Wait for a new head from now on, seconds on the monotonic clock."""
        self.ahead, self.has_begun = ahead, False
        self._since, self._bytes, self._empty, self._cr = now, 0, 0, b""

    def left_s(self, now: float) -> float:
        """Return how long the next bytes may take, seconds.

        Raises  ApiError bad_request: the head is too large; what `too_late` returns
        """
        if self._bytes > self._patience.head_bytes:
            raise ApiError("bad_request", "The header fields are too large.", status=431)
        most = self._patience.head_s if self.has_begun else self._patience.idle_s
        if now >= self._since + most:
            raise self.too_late()
        return self._since + most - now

    def too_late(self) -> BaseException:
        """Return what ends a connection whose next bytes have taken longer."""
        if not self.has_begun:
            return IdleTooLong()
        return ApiError("request_timeout", "The head of the request was not complete within "
                        f"{self._patience.head_s:g} s.")

    def take(self, data: bytes, now: float) -> bytes:
        """Judge bytes; return them without the empty lines before a head.

        Returns  nothing as long as no head has begun
        Raises   ApiError bad_request: no request begins like this; IdleTooLong: none begins
        """
        if not self.has_begun:
            data = self._cr + data
            empty = _EMPTY_LINES.match(data).end()  # type: ignore[union-attr]
            self._empty, data = self._empty + empty, data[empty:]
            if self._empty > _MAX_EMPTY_BYTES:
                raise IdleTooLong
            if data in (b"", b"\r"):
                self._cr = data
                return b""
            self.has_begun, self._since = True, now
            if not 32 < data[0] < 127 and data[0] not in b"\r\n":
                # TLS, for example: it would never come to an end.
                raise ApiError("bad_request", "This is not HTTP.")
        self._bytes += len(data)
        return data

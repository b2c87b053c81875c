"""A response body on its way from the upstream.

Source: specs/002 R15; specs/006 W2, W5, W10.
"""

import time
from collections.abc import Callable, Generator

from app.errors import BodyBroke
from app.eventloop import FairShare
from app.upstream.connection import Connection
from app.upstream.head import Head
from app.upstream.wire import body_reader


class Body:
    """A response body as it arrives, in whichever framing, never decoded.

    It is the `raw` of a requests.Response, whose iter_content calls `stream`.

    connection  the body's; it is closed, or given back after a complete body
    early       what has come of the body with the head
    give_back   takes the connection when it may serve another request
    """

    def __init__(self, connection: Connection, head: Head, early: bytes,
                 give_back: Callable[[Connection], None]) -> None:
        self._reader = body_reader(head)
        self._connection: Connection | None = connection
        self._give_back = give_back
        self._keeps_alive = head.keeps_alive and connection.is_reusable
        self._early = self._reader.feed(early) if early else b""
        self._only_framing = bool(early) and not self._early
        self._silence_limit_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Say whether a byte of the body came with the head, and nobody has read it yet."""
        return bool(self._early)

    def comes_within(self, seconds: float) -> bool:
        """Wait for something of the body, or its end; say whether it has come in time."""
        reader, connection = self._reader, self._connection
        if self._early or reader.complete or reader.broken or connection is None:
            return True
        return seconds > 0 and connection.comes_within(seconds)

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
        self._early = b""
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
                connection = self._connection
                assert connection is not None, "a closed body is not iterated"
                data = self._read_on(connection, quiet_since) if only_framing else (
                    connection.read())
                piece = reader.feed(data) if data else b""
                only_framing = bool(data) and not piece
                if not data:
                    reader.end_of_stream()
        except TimeoutError as error:
            # The kernel's own has a number: the upstream has vanished.
            raise BodyBroke("reset" if error.errno else "silence") from error
        except OSError as error:
            raise BodyBroke("reset") from error
        finally:
            self._finish(reusable=reader.complete and not reader.surplus and not empty)

    def _read_on(self, connection: Connection, quiet_since: float) -> bytes:
        """Read what is there after framing without a byte of the body.

        Dripped framing is no sign of life: the wait goes on where it was.
        """
        if self._silence_limit_s is None:
            return connection.read()
        left_s = self._silence_limit_s - (time.monotonic() - quiet_since)
        if left_s <= 0:
            raise TimeoutError
        connection.limit_silence(left_s)
        try:
            return connection.read()
        finally:
            connection.limit_silence(self._silence_limit_s)

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

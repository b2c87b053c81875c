"""Bytes on to the client as they come, or a cut that looks like a cut.

Source: specs/002 R16, R17; specs/006 W4.
"""

import socket
import struct
from collections.abc import Callable, Iterator

from app.errors import StreamCut
from app.eventloop import FairSocket
from app.journal import Ending, RequestRecord
from app.upstream.failover import Committed
from app.upstream.transport import BODY_ERRORS, break_cause

# What ends a complete event stream, and how far from its end it is looked for.
_DONE = b"[DONE]"
_TAIL_BYTES = 32


class Relay:
    """A WSGI response body: what the upstream sends, piece by piece.

    committed  the answer; closed here, whoever leaves first
    record     told of every byte and of the end
    client     the client's socket; None when there is no server in front of the app
    delimited  whether the client can tell the end of the body from the end of the connection
    on_close   called once at the very end
    """

    def __init__(self, committed: Committed, record: RequestRecord,
                 client: FairSocket | None, *, delimited: bool,
                 on_close: Callable[[], None]) -> None:
        self._committed = committed
        self._record = record
        self._client = client
        self._delimited = delimited
        self._on_close = on_close
        self._event_stream = any(
            name.lower() == "content-type" and value.lower().startswith("text/event-stream")
            for name, value in committed.response.fields)
        if not delimited:
            self._end_in_reset(True)

    def __iter__(self) -> Iterator[bytes]:
        record, tail = self._record, b""
        try:
            for chunk in self._pieces():
                record.body_bytes += len(chunk)
                tail = chunk if len(chunk) >= _TAIL_BYTES else (tail + chunk)[-_TAIL_BYTES:]
                yield chunk
        except BODY_ERRORS as error:
            record.ending, record.cut_cause = Ending.CUT_BY_UPSTREAM, break_cause(error)
            raise StreamCut from error
        record.ending = Ending.COMPLETE
        record.unfinished = self._event_stream and _DONE not in tail

    def _pieces(self) -> Iterator[bytes]:
        if self._committed.first:
            if self._client is not None:
                self._client.join_next_two_writes()
            yield self._committed.first
        yield from self._committed.response.chunks

    def _end_in_reset(self, on: bool) -> None:
        # To a client that reads until the connection closes (HTTP/1.0, nginx by default), only
        # a reset tells a broken answer from a complete one; from the start, since a worker that is
        # killed has no later.
        if self._client is not None:
            # struct linger {on, 0 seconds}: closing the socket then resets the connection.
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))

    def close(self) -> None:
        """Let go of upstream and client, whyever it ended. Closing twice is harmless."""
        if self._record.ending is Ending.COMPLETE and not self._delimited:
            self._end_in_reset(False)
        try:
            self._committed.response.close()
        finally:
            self._on_close()
            self._record.finish()

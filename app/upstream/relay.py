"""Passes bytes on to the client as they come, and cuts a broken answer so that it shows.

Source: specs/002 R16, R17; specs/006 W4, W23.
"""

import logging
import itertools
from collections.abc import Iterator

from app.client import Client
from app.errors import BodyBroke, StreamCut
from app.journal import Ending, RequestRecord
from app.logs import places
from app.routing.event_stream import StreamTail
from app.routing.usage import read_usage
from app.upstream.transport import UpstreamResponse

logger = logging.getLogger(__name__)


class Relay:
    """A WSGI response body: what the upstream sends, piece by piece.

    response   the upstream's; closed here, whoever leaves first
    first      the first bytes of the body, which the response has no more; perhaps none
    record     told of every byte and of the end
    client     the client's connection
    delimited  whether the client can tell the end of the body from the end of the connection
    tail       remembers the end of an answer that says what it has used; None for any other
    is_stream  it is an event stream, which must end in [DONE]; it has a tail
    cuts       whether an event stream without [DONE] is cut
    """

    def __init__(self, response: UpstreamResponse, first: bytes, record: RequestRecord,
                 client: Client, *, delimited: bool, tail: StreamTail | None, is_stream: bool,
                 cuts: bool) -> None:
        self._response = response
        self._first = first
        self._record = record
        self._client = client
        self._delimited = delimited
        self._tail = tail
        self._is_stream = is_stream
        self._cuts = cuts
        if not delimited:
            # To a client that reads until the connection closes (HTTP/1.0, nginx by default) only
            # a reset tells a broken answer from a complete one. It is set from the start, since a
            # worker that is killed can set nothing later.
            client.end_in_reset(True)

    def __iter__(self) -> Iterator[bytes]:
        record, tail = self._record, self._tail
        try:
            first = (self._first,) if self._first else ()
            if first:
                self._client.join_next_two_writes()
            elif not self._response.has_begun:
                # The head goes out now: the body of an error may be long in coming.
                yield b""
            for chunk in itertools.chain(first, self._response.chunks):
                record.body_bytes += len(chunk)
                if tail is not None:
                    tail.add(chunk)
                yield chunk
        except BodyBroke as error:
            record.ending, record.cut_cause = Ending.CUT_BY_UPSTREAM, error.cause
            raise StreamCut from error
        except Exception as error:
            # A defect of the router. gunicorn would log it with its text.
            logger.error("internal error", extra={
                "request_id": record.request_id, "error": type(error).__name__,
                "where": places(error)})
            record.ending = Ending.INTERNAL_ERROR
            raise StreamCut from None
        record.unfinished = tail is not None and self._is_stream and not tail.is_done()
        if record.unfinished and self._cuts:
            record.ending, record.cut_cause = Ending.CUT_BY_UPSTREAM, "unfinished"
            raise StreamCut
        record.ending = Ending.COMPLETE
        if tail is not None and not record.unfinished:
            record.usage = read_usage(tail.last())

    def fail(self) -> None:
        """Let go of all where not even the head could be written: a defect of the router."""
        self._record.status, self._record.ending = 500, Ending.INTERNAL_ERROR
        self.close()

    def close(self) -> None:
        """Let go of upstream and client, whatever ended the answer. Closing twice is harmless."""
        if self._record.ending is Ending.COMPLETE and not self._delimited:
            self._client.end_in_reset(False)
        try:
            self._response.close()
        finally:
            self._record.finish()

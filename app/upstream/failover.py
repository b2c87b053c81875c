"""One attempt after another until one commits.

The request is prepared once and attempted many times. What an attempt may do to the request is
said in app.routing.outcomes; this module only carries it out.

Source: specs/002 R11-R15, specs/005 R5, R6.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from app.errors import ApiError
from app.routing.model_field import Pieces
from app.routing.outcomes import WHEN_EXHAUSTED, Outcome, UpstreamFailed, status_outcome
from app.upstream.transport import UpstreamResponse

ABANDONED = "abandoned"


class Sender(Protocol):
    """What failover asks of a transport; see Transport.send."""

    def __call__(self, body: Pieces, headers: Mapping[str, str],
                 header_timeout_s: float) -> UpstreamResponse:
        """Send one request and wait for the response headers."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One candidate tried once.

    failure  the retryable failure it was, or None
    status   of the upstream's answer; None if there was none, or none worth passing on
    detail   a few words on the failure, for the log
    """

    model: str
    failure: Outcome | None
    status: int | None
    detail: str
    duration_ms: float

    @property
    def outcome(self) -> str:
        """Return in a word how it ended; `abandoned`: the request ended before it did."""
        return self.failure or (ABANDONED if self.status is None else str(self.status))


@dataclasses.dataclass(frozen=True)
class Committed:
    """The answer the client gets.

    model     the candidate it came from
    response  the upstream's; whoever has this closes it
    first     the first bytes of a 2xx body; empty for any other status
    """

    model: str
    response: UpstreamResponse
    first: bytes


@dataclasses.dataclass(frozen=True)
class Attempts:
    """How candidates are tried.

    send                  the transport
    first_byte_timeout_s  from the headers of a 2xx to its first body byte, total
    max_attempts          candidates tried for one request
    clock                 returns seconds, monotonic
    """

    send: Sender
    first_byte_timeout_s: float
    max_attempts: int
    clock: Callable[[], float] = time.monotonic

    def run(self, candidates: tuple[str, ...], body_for: Callable[[str], Pieces],
            headers: Mapping[str, str], header_timeout_s: float,
            on_attempt: Callable[[Attempt], None]) -> Committed:
        """Try the candidates in order until one commits.

        candidates        model ids, not empty
        body_for          model -> request body, in pieces
        headers           the fields that cross
        header_timeout_s  total for one attempt's headers, seconds
        on_attempt        told of each attempt as it ends
        Returns           Committed
        Raises            ApiError when the last attempt failed and there is nothing to pass on
        Cost              I/O; switches greenlets

        Source: specs/002 R11.
        """
        tried = candidates[:self.max_attempts]
        for model in tried:
            started = self.clock()
            response: UpstreamResponse | None = None
            try:
                response = self.send(body_for(model), headers, header_timeout_s)
                committed = self._judge(model, response, last=model == tried[-1])
            except BaseException as error:
                # Whatever ended the attempt, its connection goes at once.
                if response is not None:
                    response.close()
                if not isinstance(error, UpstreamFailed):
                    on_attempt(Attempt(model, None, None, "", self._ms_since(started)))
                    raise
                # Not the error itself: its traceback would keep this frame, and all of the
                # attempt, until the garbage collector came by.
                failure = error.outcome
                on_attempt(Attempt(model, failure, None, error.detail, self._ms_since(started)))
            else:
                try:
                    on_attempt(Attempt(model, status_outcome(response.status), response.status,
                                       "", self._ms_since(started)))
                except BaseException:
                    response.close()
                    raise
                return committed
        raise _exhausted(failure)

    def _ms_since(self, started: float) -> float:
        return (self.clock() - started) * 1000

    def _judge(self, model: str, response: UpstreamResponse, last: bool) -> Committed:
        outcome = status_outcome(response.status)
        if outcome is not None and not last:
            raise UpstreamFailed(outcome, "")
        if 200 <= response.status < 300:
            return Committed(model, response, response.first_chunk(self.first_byte_timeout_s))
        return Committed(model, response, b"")


def _exhausted(failure: Outcome) -> ApiError:
    answer = WHEN_EXHAUSTED[failure]
    assert answer is not None, "the last candidate's own answer is passed through"
    return ApiError(answer.code, answer.message)

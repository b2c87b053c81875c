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
from app.routing.outcomes import WHEN_EXHAUSTED, UpstreamFailed, status_outcome
from app.upstream.transport import UpstreamResponse


class Sender(Protocol):
    """What failover asks of a transport; see Transport.send."""

    def __call__(self, body: bytes, headers: Mapping[str, str],
                 header_timeout_s: float) -> UpstreamResponse:
        """Send one request and wait for the response headers."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One candidate tried once.

    outcome  a retryable failure's name, or the status of the answer as text
    detail   a short word on the failure, for the log
    """

    model: str
    outcome: str
    detail: str
    duration_ms: float


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

    def run(self, candidates: tuple[str, ...], body_for: Callable[[str], bytes],
            headers: Mapping[str, str], header_timeout_s: float,
            on_attempt: Callable[[Attempt, bool], None]) -> Committed:
        """Try the candidates in order until one commits.

        candidates        model ids, not empty
        body_for          model -> request body
        headers           the fields that cross
        header_timeout_s  total for one attempt's headers, seconds
        on_attempt        told of each attempt as it ends, and whether it failed retryably
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
                    raise
                on_attempt(self._attempt(model, error.outcome, error.detail, started), True)
                failure = error
                continue
            status = response.status
            on_attempt(self._attempt(model, str(status), "", started),
                       status_outcome(status) is not None)
            return committed
        raise _exhausted(failure)

    def _judge(self, model: str, response: UpstreamResponse, last: bool) -> Committed:
        outcome = status_outcome(response.status)
        if outcome is not None and not last:
            raise UpstreamFailed(outcome, "")
        if 200 <= response.status < 300:
            return Committed(model, response, response.first_chunk(self.first_byte_timeout_s))
        return Committed(model, response, b"")

    def _attempt(self, model: str, outcome: str, detail: str, started: float) -> Attempt:
        return Attempt(model, outcome, detail, (self.clock() - started) * 1000)


def _exhausted(failure: UpstreamFailed) -> ApiError:
    answer = WHEN_EXHAUSTED[failure.outcome]
    assert answer is not None, "the last candidate's own answer is passed through"
    return ApiError(answer.code, answer.message)

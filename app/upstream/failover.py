"""One attempt after another until one commits.

The request is prepared once and attempted many times. app.routing.outcomes says what an attempt's
failure does to the request, app.routing.failover_limits how far failover goes. This module carries
it out.

Source: specs/002 R11-R15, R61-R65, specs/005 R5, R6, specs/007 R22.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from app.errors import ApiError
from app.metrics import count, failover_budget_exhausted_total
from app.routing.decision import COOLING, FULL
from app.routing.error_body import MAX_BYTES
from app.routing.failover_limits import Course, Limits, RetryBudget
from app.routing.headers import Field, is_coded, value_of
from app.routing.model_field import Pieces
from app.routing.outcomes import (Attempt, Failure, UpstreamFailed, blame_for, refusal,
                                  unavailable)
from app.upstream.transport import UpstreamResponse
from app.upstream.waiting import Waiting


class Sender(Protocol):
    """What failover asks of a transport; see Transport.send."""

    def __call__(self, path: str, body: Pieces, headers: Mapping[str, str],
                 header_timeout_s: float) -> UpstreamResponse:
        """Send one request and wait for the response headers."""


def uncounted(_model: str) -> None:
    """Take no note of an attempt that begins."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request ready to be sent, the same for each attempt but for the body's model.

    path              below the base URL, with the query
    body_for          model -> body, in pieces
    headers           the fields that cross
    header_timeout_s  total for one attempt's response headers
    came_at           when the request came, on the clock of Attempts
    body_bytes        of the client's request
    chosen_here       alias or list mode: a 404 that names the model is a failure of the candidate
    begun             told of the model when an attempt begins
    """

    path: str
    body_for: Callable[[str], Pieces]
    headers: Mapping[str, str]
    header_timeout_s: float
    came_at: float
    body_bytes: int
    chosen_here: bool
    begun: Callable[[str], None] = uncounted


class AttemptObserver(Protocol):
    """Whoever wants to know how each attempt ended: the journal, stickiness."""

    def attempted(self, attempt: Attempt) -> None:
        """Take note of an attempt. May do I/O and switch greenlets."""


@dataclasses.dataclass(frozen=True)
class Committed:
    """The answer the client gets.

    model        the candidate it came from
    response     the upstream's; whoever has this closes it
    first        bytes of the body that have been read to judge it; perhaps none
    failure      the retryable failure that it is, where no attempt follows
    at_capacity  it is a 429 that says that the infrastructure is full
    """

    model: str
    response: UpstreamResponse
    first: bytes
    failure: Failure | None = None
    at_capacity: bool = False


def _always(_model: str) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Attempts:
    """How candidates are tried.

    send                  the transport
    first_byte_timeout_s  from the headers of a 2xx to its first body byte, total
    limits                of one request
    clock                 returns seconds, monotonic
    waiting               who waits for which model
    retries               attempts beyond the first, of all requests of this worker
    on_capacity_429       whether a 429 that says that the infrastructure is full is retryable
    """

    send: Sender
    first_byte_timeout_s: float
    limits: Limits
    clock: Callable[[], float] = time.monotonic
    waiting: Waiting = dataclasses.field(default_factory=Waiting)
    retries: RetryBudget = dataclasses.field(default_factory=lambda: RetryBudget(time.monotonic))
    on_capacity_429: bool = False

    def run(self, candidates: tuple[str, ...], request: Prepared,
            observers: Sequence[AttemptObserver],
            may_try: Callable[[str], bool] = _always,
            passed_over: Sequence[Callable[[str, str], None]] = ()) -> Committed:
        """Try the candidates in order until one commits.

        candidates  model ids, not empty
        request     what is sent
        observers   told of each attempt as it ends
        may_try     asked before each attempt; may do I/O. The last candidate is tried in any case
        passed_over each told of every candidate that is not tried for now, and why
        Returns     Committed
        Raises      ApiError when an attempt failed, none follows and there is nothing to pass on,
                    or when too many requests wait for the last candidate
        Cost        I/O; switches greenlets

        Source: specs/002 R11.
        """
        course, attempts = Course(self.limits, request.came_at, self.clock), 0
        self.retries.count_request()
        for left, model in zip(reversed(range(len(candidates))), candidates):
            why = self._why_not(model, may_try)
            if why and left:
                for told in passed_over:
                    told(model, why)
                continue
            attempts += 1
            last = not left or attempts == self.limits.attempts
            self.waiting.enter(model)
            try:
                return self._attempt(model, request, observers, course, last)
            except UpstreamFailed as error:
                # Not the error itself: its traceback would keep this frame, and all of the
                # attempt, until the garbage collector came by.
                failure = error.failure
            finally:
                self.waiting.leave(model)
            # Where there was an answer to pass on, this was asked before it was dropped.
            if failure.message is not None and not self._goes_on(failure, course, last):
                break
        assert failure.message is not None, "the upstream's own answer is passed on"
        raise ApiError(failure.reason, failure.message)

    def _why_not(self, model: str, may_try: Callable[[str], bool]) -> str:
        if self.waiting.is_full(model):
            return FULL
        return "" if may_try(model) else COOLING

    def _attempt(self, model: str, request: Prepared, observers: Sequence[AttemptObserver],
                 course: Course, last: bool) -> Committed:
        started, response = self.clock(), None
        request.begun(model)
        try:
            response = self.send(request.path, request.body_for(model), request.headers,
                                 request.header_timeout_s)
            committed = self._judge(model, response, request.chosen_here)
            if committed.failure is not None and self._goes_on(committed.failure, course, last):
                raise UpstreamFailed(committed.failure, "")
        except BaseException as error:
            # Whatever ended the attempt, its connection is closed at once.
            if response is not None:
                response.close()
            failure, detail = ((error.failure, error.detail) if isinstance(error, UpstreamFailed)
                               else (None, ""))
            self._tell(observers, Attempt(model, failure, blame_for(failure, request.body_bytes),
                                          None, detail, self._ms_since(started)))
            raise
        failure = committed.failure
        try:
            self._tell(observers, Attempt(model, failure, blame_for(failure, request.body_bytes),
                                          response.status, "", self._ms_since(started)))
        except BaseException:
            response.close()
            raise
        return committed

    def _goes_on(self, failure: Failure, course: Course, last: bool) -> bool:
        """Say whether the next candidate has its turn after a failure. Asked once for each."""
        if last or not course.goes_on_after(failure):
            return False
        if not self.retries.take():
            count(failover_budget_exhausted_total)
            return False
        return True

    def _ms_since(self, started: float) -> float:
        return (self.clock() - started) * 1000

    @staticmethod
    def _tell(observers: Sequence[AttemptObserver], attempt: Attempt) -> None:
        for observer in observers:
            observer.attempted(attempt)

    def _judge(self, model: str, response: UpstreamResponse,
               chosen_here: bool) -> Committed:
        status, fields = response.status, response.fields
        if 200 <= status < 300:
            return Committed(model, response, response.first_chunk(self.first_byte_timeout_s))
        if status == 503:
            content_type = value_of("content-type", fields)
            body = b"" if content_type else response.peek(0)
            return Committed(model, response, body, unavailable(content_type, body))
        if not self._looks_into(status, fields, chosen_here):
            return Committed(model, response, b"")
        body = response.peek(MAX_BYTES)
        failure = refusal(status, body) if len(body) <= MAX_BYTES else None
        if failure is Failure.AT_CAPACITY and not self.on_capacity_429:
            return Committed(model, response, body, at_capacity=True)
        return Committed(model, response, body, failure, failure is Failure.AT_CAPACITY)

    def _looks_into(self, status: int, fields: Sequence[Field], chosen_here: bool) -> bool:
        """Say whether the body of a refusal makes a difference."""
        if is_coded(fields):
            return False
        if status == 429:
            return self.on_capacity_429 or not value_of("retry-after", fields)
        return status == 404 and chosen_here

"""What happened to one request, told in one log line when it is over.

The line holds no address, no token, no part of a body: models appear by their allowlisted id
or as `other`, which the caller sees to with `routing.selection.log_name`.

Source: specs/001 R7, R8.
"""

import enum
import logging
from collections.abc import Callable
from typing import Any, Protocol

from app import metrics

logger = logging.getLogger("app.request")


class Ending(enum.StrEnum):
    """How a request ended."""

    COMPLETE = "complete"
    REFUSED = "refused"
    CUT_BY_UPSTREAM = "cut_by_upstream"
    CUT_AT_SHUTDOWN = "cut_at_shutdown"
    CLIENT_GONE = "client_gone"
    INTERNAL_ERROR = "internal_error"


# Why answers are cut.
CAUSES = ("reset", "short", "bad_framing", "silence", "shutdown")
_CUTS = (Ending.CUT_BY_UPSTREAM, Ending.CUT_AT_SHUTDOWN)


class EndedAttempt(Protocol):
    """What is read of an attempt; see upstream.failover.Attempt."""

    @property
    def model(self) -> str:
        """Return the candidate's model id."""

    @property
    def failure(self) -> str | None:
        """Return the retryable failure, or None."""

    @property
    def outcome(self) -> str:
        """Return in a word how it ended."""

    @property
    def detail(self) -> str:
        """Return a few words on the failure."""

    @property
    def duration_ms(self) -> float:
        """Return how long it took."""


class RequestRecord:
    """Collects what the request's line and the counters will say.

    request_id  sane id of the request
    clock       returns seconds, monotonic
    """

    def __init__(self, request_id: str, clock: Callable[[], float]) -> None:
        self.request_id = request_id
        self._clock = clock
        self._started = clock()
        self._first_byte_at: float | None = None
        self._told = False
        # Gives a model the name it has in logs.
        self.label: Callable[[str], str] = _other
        self.mode = ""
        self.asked = ""
        self.selected = ""
        # nginx's word for a client that left without an answer, until there is one.
        self.status = 499
        self.sticky = ""
        self.code = ""
        self.body_bytes = 0
        self.resent = False
        self.unfinished = False
        self.cut_cause = ""
        self.attempts: list[dict[str, Any]] = []
        self.failures: list[str] = []
        # Whoever sees the request to another end says so.
        self.ending = Ending.CLIENT_GONE
        self.on_finish: Callable[[], None] = _nothing
        metrics.count(metrics.requests_active)

    def attempted(self, attempt: EndedAttempt) -> None:
        """Take note of an attempt as it ends."""
        self.attempts.append({
            "model": self.label(attempt.model), "outcome": attempt.outcome,
            "detail": attempt.detail, "ms": round(attempt.duration_ms, 1)})
        if attempt.failure is not None:
            self.failures.append(attempt.failure)

    def begin_answer(self) -> None:
        """Take note that the first byte of the answer is here and goes to the client next."""
        self._first_byte_at = self._clock()
        metrics.count(metrics.streams_open)

    def cut_at_shutdown(self) -> None:
        """Take note that the request will be cut, unless it ends by itself before that."""
        self.ending, self.cut_cause = Ending.CUT_AT_SHUTDOWN, "shutdown"

    def finish(self) -> None:
        """Write the line and count. Finishing twice does it once."""
        if self._told:
            return
        self._told = True
        self.on_finish()
        duration_s, first_byte_s = self._clock() - self._started, None
        if self._first_byte_at is not None:
            first_byte_s = self._first_byte_at - self._started
            self._measure(first_byte_s, duration_s)
        self._count()
        logger.info("request", extra={
            "request_id": self.request_id, "mode": self.mode, "asked": self.asked,
            "sticky": self.sticky, "attempts": self.attempts, "selected": self.selected,
            "status": self.status, "code": self.code, "bytes": self.body_bytes,
            "resent": self.resent, "unfinished": self.unfinished,
            "cut_cause": self.cut_cause if self.ending in _CUTS else "",
            "first_byte_ms": None if first_byte_s is None else _ms(first_byte_s),
            "duration_ms": _ms(duration_s), "ended": self.ending})

    def _measure(self, first_byte_s: float, duration_s: float) -> None:
        metrics.count(metrics.streams_open, amount=-1)
        metrics.measure(metrics.first_byte_seconds, first_byte_s)
        metrics.measure(metrics.duration_seconds, duration_s)
        metrics.count(metrics.response_bytes_total, amount=self.body_bytes)

    def _count(self) -> None:
        metrics.count(metrics.requests_active, amount=-1)
        metrics.count(metrics.requests_total, self.status)
        for reason in self.failures:
            metrics.count(metrics.failover_reason_total, reason)
        if self.attempts:
            metrics.measure(metrics.attempts, len(self.attempts))
        if self.sticky:
            metrics.count(metrics.sticky_total, self.sticky)
        if self.selected:
            metrics.count(metrics.selection_total, self.selected, self.status)
        if self.ending is Ending.CLIENT_GONE:
            metrics.count(metrics.client_gone_total)
        if self.ending in _CUTS:
            metrics.count(metrics.cuts_total, self.cut_cause)
        if self.ending is Ending.INTERNAL_ERROR:
            metrics.count(metrics.internal_errors_total)
        if self.code == "overloaded":
            metrics.count(metrics.overloaded_total)
        if self.unfinished:
            metrics.count(metrics.unfinished_streams_total)


def _nothing() -> None:
    pass


def _other(_model: str) -> str:
    return "other"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

"""What happened to one request: one log line and a few counters, when it is over.

The line holds no address, no token and no part of a body. A model appears by its allowlisted id
or as `other`; the caller makes sure of that with `View.label`.

Source: specs/001 R7, R8.
"""

import enum
import logging
from collections.abc import Callable, Sequence
from typing import Any

from app import metrics
from app.routing.account import Account
from app.routing.catalogue import OTHER
from app.routing.outcomes import Attempt, Blame, Failure
from app.routing.usage import Usage
from app.seen.memory import Memory

logger = logging.getLogger("app.request")


class Ending(enum.StrEnum):
    """How a request ended."""

    COMPLETE = "complete"
    REFUSED = "refused"
    CUT_BY_UPSTREAM = "cut_by_upstream"
    CUT_AT_SHUTDOWN = "cut_at_shutdown"
    CLIENT_GONE = "client_gone"
    INTERNAL_ERROR = "internal_error"


# Why an answer is cut after commit.
CAUSES = ("reset", "short", "bad_framing", "silence", "unfinished", "shutdown")
_CUTS = (Ending.CUT_BY_UPSTREAM, Ending.CUT_AT_SHUTDOWN)


class RequestRecord:
    """Collects what the log line and the counters will say of a request.

    request_id  the request's id, made safe to log
    clock       returns seconds, monotonic
    memory      of the host; told what the line and the counters are told
    started     when the request came, on that clock
    """

    def __init__(self, request_id: str, clock: Callable[[], float], memory: Memory) -> None:
        self.request_id = request_id
        self._memory = memory
        self._clock = clock
        self.started = clock()
        self._first_byte_at: float | None = None
        self._told = False
        # Gives a model the name it has in logs.
        self.label: Callable[[str], str] = _other
        self.mode = ""
        self.asked = ""
        self.selected = ""
        # nginx's status for a client that left without an answer, which is so until there is one.
        self.status = 499
        self.code = ""
        self.body_bytes = 0
        self.resent = False
        self.unfinished = False
        self.cut_cause = ""
        self.attempts: list[dict[str, Any]] = []
        self.failures: list[Failure] = []
        # The tokens that the answer says it has used.
        self.usage: Usage | None = None
        # Of the decision and the attempts; None before there is a decision.
        self.account: Account | None = None
        self.trace_id = ""
        self.invocation_id = ""
        # Code that brings the request to another end sets another value.
        self.ending = Ending.CLIENT_GONE
        self.on_finish = list[Callable[[], None]]()
        memory.active += 1
        metrics.count(metrics.requests_active)

    def attempted(self, attempt: Attempt) -> None:
        """Take note of an attempt as it ends."""
        if self.account is not None:
            self.account.attempted(attempt)
        label, outcome = self.label(attempt.model), attempt.outcome
        self.attempts.append({"model": label, "outcome": outcome, "detail": attempt.detail,
                              "ms": round(attempt.duration_ms, 1)})
        if attempt.failure is not None:
            self.failures.append(attempt.failure)
        self._memory.attempted(label, outcome,
                               attempt.duration_ms if attempt.is_success else None)

    @property
    def failover_tried(self) -> bool:
        """Say whether failover was tried; see Account."""
        return self.account is not None and self.account.failover_tried

    @property
    def sticky(self) -> str:
        """What became of the client's sticky choice; empty before there is a decision."""
        return self.account.sticky if self.account is not None else ""

    def begin_answer(self) -> None:
        """Take note that the first byte of the answer is here and goes to the client next."""
        self._first_byte_at = self._clock()
        self._memory.streams += 1
        metrics.count(metrics.streams_open)

    def cut_at_shutdown(self) -> None:
        """Note that shutdown cuts the request, unless it ends by itself before."""
        self.ending, self.cut_cause = Ending.CUT_AT_SHUTDOWN, "shutdown"

    def finish(self) -> None:
        """Write the line and count. A second call does nothing."""
        if self._told:
            return
        self._told = True
        for told in self.on_finish:
            told()
        duration_s, first_byte_s = self._clock() - self.started, None
        if self._first_byte_at is not None:
            first_byte_s = self._first_byte_at - self.started
            self._measure(first_byte_s, duration_s)
        self._count()
        line = {
            "request_id": self.request_id, "trace_id": self.trace_id,
            "invocation_id": self.invocation_id, "mode": self.mode, "asked": self.asked,
            "sticky": self.sticky, "attempts": self.attempts, "selected": self.selected,
            "status": self.status, "code": self.code, "bytes": self.body_bytes,
            "resent": self.resent, "unfinished": self.unfinished,
            "cut_cause": self.cut_cause if self.ending in _CUTS else "",
            "first_byte_ms": None if first_byte_s is None else _ms(first_byte_s),
            "duration_ms": _ms(duration_s), "ended": self.ending}
        logger.info("request", extra=line)
        self._memory.finished(self.status, line)
        if self.usage is not None:
            self._memory.used(self.selected, self.usage)

    def _measure(self, first_byte_s: float, duration_s: float) -> None:
        self._memory.streams -= 1
        metrics.count(metrics.streams_open, amount=-1)
        metrics.measure(metrics.first_byte_seconds, first_byte_s)
        metrics.measure(metrics.duration_seconds, duration_s)
        metrics.count(metrics.response_bytes_total, amount=self.body_bytes)

    def _count(self) -> None:
        sticky = self.sticky
        rows: list[tuple[Any, object, Sequence[str | int]]] = [
            # metric, whether it counts this request, the values of its labels
            (metrics.requests_total, True, [self.status]),
            (metrics.selection_total, self.selected, [self.selected, self.status]),
            (metrics.sticky_total, sticky, [sticky]),
            (metrics.client_gone_total, self.ending is Ending.CLIENT_GONE, []),
            (metrics.cuts_total, self.ending in _CUTS, [self.cut_cause]),
            (metrics.internal_errors_total, self.ending is Ending.INTERNAL_ERROR, []),
            (metrics.overloaded_total, self.code == "overloaded", []),
            (metrics.unfinished_streams_total, self.unfinished, []),
            *((metrics.failover_reason_total, True, [each.reason]) for each in self.failures),
            *((metrics.edge_failures_total, each.blame is Blame.EDGE, [each.kind])
              for each in self.failures),
        ]
        for metric, counts, labels in rows:
            if counts:
                metrics.count(metric, *labels)
        if self.attempts:
            metrics.measure(metrics.attempts, len(self.attempts))
        self._memory.active -= 1
        metrics.count(metrics.requests_active, amount=-1)


def _other(_model: str) -> str:
    return OTHER


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

"""What happened to one request, told in one log line when it is over.

The line holds no address, no token, no part of a body: models appear by their allowlisted id
or as `other`, which the caller sees to with `routing.selection.log_name`.

Source: specs/001 R7, R8.
"""

import enum
import logging
from collections.abc import Callable
from typing import Any

from app import metrics

logger = logging.getLogger("app.request")


class Ending(enum.StrEnum):
    """How a request ended."""

    COMPLETE = "complete"
    REFUSED = "refused"
    CUT_BY_UPSTREAM = "cut_by_upstream"
    CLIENT_GONE = "client_gone"
    INTERNAL_ERROR = "internal_error"


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
        self.mode = ""
        self.asked = ""
        self.selected = ""
        # nginx's word for a client that left without an answer, until there is one.
        self.status = 499
        self.code = ""
        self.body_bytes = 0
        self.resent = False
        self.unfinished = False
        self.cut_cause = ""
        self.attempts: list[dict[str, Any]] = []
        self.failures: list[str] = []
        # Whoever sees the request to another end says so.
        self.ending = Ending.CLIENT_GONE
        metrics.requests_active.inc()

    def committed(self) -> None:
        """Take note that the response is about to start."""
        self._first_byte_at = self._clock()

    def finish(self) -> None:
        """Write the line and count. Finishing twice does it once."""
        if self._told:
            return
        self._told = True
        self._count()
        first = self._first_byte_at
        logger.info("request", extra={
            "request_id": self.request_id, "mode": self.mode, "asked": self.asked,
            "attempts": self.attempts, "selected": self.selected, "status": self.status,
            "code": self.code, "bytes": self.body_bytes, "resent": self.resent,
            "unfinished": self.unfinished, "cut_cause": self.cut_cause,
            "first_byte_ms": None if first is None else _ms(first - self._started),
            "duration_ms": _ms(self._clock() - self._started), "ended": self.ending})

    def _count(self) -> None:
        metrics.requests_active.dec()
        metrics.requests_total.labels(self.status).inc()
        for reason in self.failures:
            metrics.failover_reason_total.labels(reason).inc()
        if self.selected:
            metrics.selection_total.labels(self.selected, self.status).inc()
        if self.ending is Ending.CLIENT_GONE:
            metrics.client_gone_total.inc()
        if self.ending is Ending.CUT_BY_UPSTREAM:
            metrics.cuts_total.labels(self.cut_cause).inc()
        if self.unfinished:
            metrics.unfinished_streams_total.inc()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

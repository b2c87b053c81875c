"""What happened to one request, told in one log line when it is over.

The line holds no address, no token, no part of a body: models appear by their allowlisted id
or as `other`, which the caller sees to with `routing.selection.log_name`.

Source: specs/001 R7, R8.
"""

import enum
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("app.request")


class Ending(enum.StrEnum):
    """How a request ended."""

    COMPLETE = "complete"
    REFUSED = "refused"
    CUT_BY_UPSTREAM = "cut_by_upstream"
    CLIENT_GONE = "client_gone"


class RequestRecord:
    """Collects what the request's line will say.

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
        self.status = 0
        self.code = ""
        self.body_bytes = 0
        self.resent = False
        self.attempts: list[dict[str, Any]] = []
        # Whoever sees the request to another end says so.
        self.ending = Ending.CLIENT_GONE

    def committed(self) -> None:
        """Take note that the response is about to start."""
        self._first_byte_at = self._clock()

    def finish(self) -> None:
        """Write the line. Finishing twice writes it once."""
        if self._told:
            return
        self._told = True
        first = self._first_byte_at
        logger.info("request", extra={
            "request_id": self.request_id, "mode": self.mode, "asked": self.asked,
            "attempts": self.attempts, "selected": self.selected, "status": self.status,
            "code": self.code, "bytes": self.body_bytes, "resent": self.resent,
            "first_byte_ms": None if first is None else _ms(first - self._started),
            "duration_ms": _ms(self._clock() - self._started), "ended": self.ending})


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

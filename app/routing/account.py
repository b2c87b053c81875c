"""How an answer came about, as its header fields tell it.

Source: specs/002 R17, R52, R66-R68.
"""

from collections.abc import Callable

from app.routing.decision import Decision, Mode
from app.routing.headers import (ATTEMPTS, SERVER_TIMING, STICKY, Field, selected_fields,
                                 skipped_fields)
from app.routing.outcomes import Attempt


class Account:
    """Takes note of the attempts of one request; told of each as it ends.

    decision      of the request
    is_kept       whether stickiness is on
    max_attempts  that a request may have
    started       when the request came, seconds on `clock`
    """

    def __init__(self, decision: Decision, is_kept: bool, max_attempts: int, started: float,
                 clock: Callable[[], float]) -> None:
        self._decision, self._is_kept, self._max_attempts = decision, is_kept, max_attempts
        self._started, self._clock = started, clock
        # What was passed over or failed, with the reason, in order.
        self._before: list[tuple[str, str]] = []
        self._first = self._last = ""
        self._attempts = 0
        self._tried_ms = self._router_ms = self._upstream_ms = 0.0

    def attempted(self, attempt: Attempt) -> None:
        """Take note of an attempt as it ends."""
        self._attempts += 1
        self._first = self._first or attempt.model
        self._last, self._upstream_ms = attempt.model, attempt.duration_ms
        self._tried_ms += attempt.duration_ms
        self._router_ms = (self._clock() - self._started) * 1000 - self._tried_ms
        if attempt.failure is not None:
            self._before.append((attempt.model, attempt.failure.reason))

    def passed_over(self, model: str, reason: str) -> None:
        """Take note of a candidate that was not tried."""
        self._before.append((model, reason))

    def fields(self) -> list[Field]:
        """Return the response fields; none without an attempt.

        The time before the last attempt is the router's, but for the attempts that failed; from
        there to the first byte of its body it is the upstream's.
        """
        if not self._attempts:
            return []
        timing = f"router;dur={self._router_ms:.1f}, upstream;dur={self._upstream_ms:.1f}"
        if self._decision.mode is Mode.DIRECT:
            return [(SERVER_TIMING, timing)]
        # The answer comes from the last one, even if that has failed.
        skipped = [each for each in (*self._decision.skipped, *self._before)
                   if each[0] != self._last]
        sticky = [(STICKY, self.sticky)] if self._is_kept else []
        return [*selected_fields(self._last), (ATTEMPTS, str(self._attempts)),
                *(skipped_fields(skipped) if skipped else ()), *sticky, (SERVER_TIMING, timing)]

    @property
    def sticky(self) -> str:
        """What became of the client's sticky choice; empty in direct mode or without stickiness.

        Source: specs/002 R67.
        """
        if not self._is_kept:
            return ""
        sticky, choice = self._decision.sticky, self._decision.candidates[0]
        if sticky != "hit":
            return sticky
        if self._first != choice:
            return "ignored"
        return "moved" if self._first_failed else "hit"

    @property
    def _first_failed(self) -> bool:
        # What was tried was not passed over before.
        return self._first in dict(self._before)

    @property
    def failover_tried(self) -> bool:
        """Say whether a second candidate was tried, or its attempt was denied.

        Source: specs/002 R66.
        """
        if self._attempts == 1 and self._first_failed and self._max_attempts > 1:
            return len(self._decision.candidates) > len(self._before)
        return self._attempts > 1

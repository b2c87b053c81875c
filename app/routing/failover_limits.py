"""How far failover goes: for one request, and for a worker whose upstream is in trouble.

Source: specs/002 R62-R64.
"""

import collections
import dataclasses
from collections.abc import Callable

from app.routing.outcomes import Failure

# Attempts beyond the first: this share of the requests of the last ten seconds, and so many more.
_SHARE = 0.2
_FREE = 100
# The ten seconds are counted in steps, so that they take the same room however many requests come.
_STEPS_A_SECOND = 10
_STEPS = 10 * _STEPS_A_SECOND


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far failover goes for one request.

    attempts       made, each on another candidate
    edge_failures  so many counted ones in a row end it
    budget_s       no further attempt begins so long after the request came
    """

    attempts: int = 8
    edge_failures: int = 2
    budget_s: float = 60.0


class _LastTenSeconds:
    """How often something happened in the last ten seconds."""

    def __init__(self) -> None:
        self._counts = collections.deque[list[int]]()
        self._total = 0

    def add(self, step: int) -> None:
        self._total += 1
        if self._counts and self._counts[-1][0] == step:
            self._counts[-1][1] += 1
        else:
            self._counts.append([step, 1])
            self.total(step)

    def total(self, step: int) -> int:
        while self._counts and self._counts[0][0] <= step - _STEPS:
            self._total -= self._counts.popleft()[1]
        return self._total


class RetryBudget:
    """How many attempts beyond the first the requests of a worker may make together.

    clock  returns seconds, monotonic

    A fifth of the requests of the last ten seconds, and a hundred: so failover does not become the
    load of an upstream that fails everywhere.

    Source: specs/002 R64.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests, self._retries = _LastTenSeconds(), _LastTenSeconds()

    def count_request(self) -> None:
        """Count a request that makes its first attempt. Cost: 0.4 µs."""
        self._requests.add(int(self._clock() * _STEPS_A_SECOND))

    def take(self) -> bool:
        """Count an attempt beyond the first, if there may be one; say whether there may."""
        step = int(self._clock() * _STEPS_A_SECOND)
        if self._retries.total(step) + 1 > _SHARE * self._requests.total(step) + _FREE:
            return False
        self._retries.add(step)
        return True


class Course:
    """What the failures of one request lead to; see Limits.

    came_at  when the request came, on `clock`
    clock    returns seconds, monotonic
    """

    def __init__(self, limits: Limits, came_at: float, clock: Callable[[], float]) -> None:
        self._limits, self._came_at, self._clock = limits, came_at, clock
        self._edge_failures = 0

    def goes_on_after(self, failure: Failure) -> bool:
        """Take note of a failure; say whether the request may have another attempt.

        Source: specs/002 R62, R63.
        """
        self._edge_failures = self._edge_failures + 1 if failure.counted else 0
        return (self._edge_failures < self._limits.edge_failures
                and self._clock() - self._came_at < self._limits.budget_s)

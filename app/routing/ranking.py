"""Orders the chutes of the utilization feed, and says why.

Source: specs/003 R4-R6.
"""

import dataclasses
import enum
import functools
import operator
from collections.abc import Callable, Iterable

import msgspec

# What is there once for each chute is a struct that the garbage collector does not look at. To look
# at that of 20,000 chutes would hold the event loop for 40 ms and more.

PRIVATE_CHUTE = "[private chute]"
TEE_SUFFIX = "-TEE"

# At most so many instances that a chute may be scaled up by count, each as a twentieth of a running
# one. Source: specs/003 R5.
_MAX_SCALE_ALLOWANCE = 8
_SCALE_ALLOWANCE_WEIGHT = 0.05
# A rate-limited request counts against a chute twice as much as a busy slot.
_RATE_LIMIT_WEIGHT = 2.0
# A chute is full above both. Source: specs/005 R15.
_FULL_UTILIZATION, _FULL_RATE_LIMITED = 0.95, 0.05
# Rows between two pauses; they take less than 2 ms.
_ROWS_PER_SLICE = 256


class UtilizationRow(msgspec.Struct, frozen=True, gc=False):
    """One chute as the utilization feed describes it; None where the feed says nothing.

    Ratios are 0..1 as a rule, but not bounded: a chute can be over-committed. Counts are >= 0.

    timestamp  when the feed says this was so, seconds since 1970
    """

    name: str
    active_instance_count: int
    utilization_current: float | None = None
    utilization_5m: float | None = None
    utilization_15m: float | None = None
    utilization_1h: float | None = None
    rate_limit_ratio_5m: float | None = None
    rate_limit_ratio_15m: float | None = None
    rate_limit_ratio_1h: float | None = None
    scalable: bool | None = None
    scale_allowance: float | None = None
    timestamp: float | None = None


class ScoreParts(msgspec.Struct, frozen=True, order=True, gc=False):
    """What a score is made of, in instances; the score is free + scalable - rate_limited."""

    free: float
    scalable: float
    rate_limited: float

    @property
    def score(self) -> float:
        """Return the sum; higher is better."""
        return self.free + self.scalable - self.rate_limited


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A chute that an alias may choose.

    instances  that run; at least 1
    full       whether the feed says that it is busy and refuses requests
    """

    name: str
    parts: ScoreParts
    instances: int = 1
    full: bool = False

    @property
    def utilization(self) -> float:
        """Return how busy it is, as the score sees it; above 1 where it is over-committed."""
        return 1 - self.parts.free / self.instances


class Rejection(enum.StrEnum):
    """Why no alias may choose a chute."""

    PRIVATE = "private"
    NO_INSTANCE = "no_instance"
    NOT_ALLOWLISTED = "not_allowlisted"


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The chutes of one feed.

    candidates  best first, no name twice
    rejected    name -> reason; no candidate's name
    """

    candidates: tuple[Candidate, ...] = ()
    rejected: dict[str, Rejection] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def by_name(self) -> dict[str, Candidate]:
        """Return the candidates by name."""
        return {candidate.name: candidate for candidate in self.candidates}


def no_pause() -> None:
    """Do nothing, where nobody else is to run."""


def rank(rows: Iterable[UtilizationRow], allowlist: frozenset[str],
         pause: Callable[[], None] = no_pause) -> Ranking:
    """Order the eligible chutes, best first.

    rows       ratios 0..1 as a rule, counts >= 0
    allowlist  model ids; empty means unknown: only names ending in -TEE qualify then
    pause      called after each slice of rows to let others run
    Returns    Ranking; the same input gives the same order
    Cost       O(n log n), no I/O; 20,000 rows take 150 ms, at most 20 ms between two pauses

    Source: specs/003 R4-R6, R13.
    """
    eligible, rejected = [], dict[str, Rejection]()
    for number, row in enumerate(rows, 1):
        reason, parts = _rejection(row, allowlist), _parts(row)
        if reason is None:
            eligible.append((_sort_key(row, parts.score), Candidate(
                row.name, parts, row.active_instance_count, _is_full(row))))
        else:
            rejected[row.name] = min(reason, rejected.get(row.name, reason))
        if number % _ROWS_PER_SLICE == 0:
            pause()
    best = dict[str, Candidate]()
    eligible.sort(key=operator.itemgetter(0))
    pause()
    for _, candidate in eligible:
        best.setdefault(candidate.name, candidate)
        rejected.pop(candidate.name, None)
    return Ranking(tuple(best.values()), rejected)


def _rejection(row: UtilizationRow, allowlist: frozenset[str]) -> Rejection | None:
    if row.name == PRIVATE_CHUTE:
        return Rejection.PRIVATE
    if row.active_instance_count <= 0:
        return Rejection.NO_INSTANCE
    listed = row.name in allowlist if allowlist else row.name.endswith(TEE_SUFFIX)
    return None if listed else Rejection.NOT_ALLOWLISTED


def _sort_key(row: UtilizationRow, score: float) -> tuple[float, int, float, float, str]:
    u5 = _first(row.utilization_5m, row.utilization_current, 1.0)
    return (-score, -row.active_instance_count,
            _first(row.utilization_current, u5), _first(row.rate_limit_ratio_5m, 0.0), row.name)


def _parts(row: UtilizationRow) -> ScoreParts:
    u5 = _first(row.utilization_5m, row.utilization_current, 1.0)
    u15 = _first(row.utilization_15m, u5)
    u1h = _first(row.utilization_1h, u15)
    r5 = _first(row.rate_limit_ratio_5m, 0.0)
    r15 = _first(row.rate_limit_ratio_15m, r5)
    r1h = _first(row.rate_limit_ratio_1h, r15)

    active = row.active_instance_count
    utilization = 0.6 * u5 + 0.3 * u15 + 0.1 * u1h
    rate_limited = max(r5, 0.5 * r15, 0.25 * r1h)
    allowance = min(row.scale_allowance or 0.0, _MAX_SCALE_ALLOWANCE) if row.scalable else 0.0
    return ScoreParts(free=active * (1 - utilization),
                      scalable=allowance * _SCALE_ALLOWANCE_WEIGHT,
                      rate_limited=active * rate_limited * _RATE_LIMIT_WEIGHT)


def _is_full(row: UtilizationRow) -> bool:
    return ((row.utilization_5m or 0.0) > _FULL_UTILIZATION
            and (row.rate_limit_ratio_5m or 0.0) > _FULL_RATE_LIMITED)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)

"""Utilization rows and an allowlist in, ranked candidates out.

Source: specs/003 R4-R6.
"""

import dataclasses
from collections.abc import Iterable

PRIVATE_CHUTE = "[private chute]"
TEE_SUFFIX = "-TEE"

# A chute may be scaled up, but only so many instances of that promise are counted, each as a
# twentieth of a running one. Source: specs/003 R5.
_SCALE_ALLOWANCE_CAP = 8
_SCALE_ALLOWANCE_WEIGHT = 0.05
# A rate-limited request counts against a chute twice as much as a busy slot.
_RATE_LIMIT_WEIGHT = 2.0


@dataclasses.dataclass(frozen=True)
class UtilizationRow:
    """One chute as the utilization feed describes it; None where the feed says nothing.

    Ratios are 0..1 as a rule, but not bounded: a chute can be over-committed. Counts are >= 0.
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


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model eligible for an alias request, with the score that ranks it; higher is better."""

    name: str
    score: float


def rank(rows: Iterable[UtilizationRow], allowlist: frozenset[str]) -> tuple[Candidate, ...]:
    """Order the eligible chutes, best first.

    rows       ratios 0..1 as a rule, counts >= 0
    allowlist  model ids; empty means unknown: only names ending in -TEE qualify then
    Returns    candidates, no name twice, possibly none; the same input gives the same order
    Cost       O(n log n), no I/O

    Source: specs/003 R4-R6.
    """
    keyed = sorted((_sort_key(row), row.name) for row in rows if _eligible(row, allowlist))
    best: dict[str, Candidate] = {}
    for key, name in keyed:
        best.setdefault(name, Candidate(name, -key[0]))
    return tuple(best.values())


def _eligible(row: UtilizationRow, allowlist: frozenset[str]) -> bool:
    if row.name == PRIVATE_CHUTE or row.active_instance_count <= 0:
        return False
    return row.name in allowlist if allowlist else row.name.endswith(TEE_SUFFIX)


def _sort_key(row: UtilizationRow) -> tuple[float, int, float, float]:
    u5 = _first(row.utilization_5m, row.utilization_current, 1.0)
    u15 = _first(row.utilization_15m, u5)
    u1h = _first(row.utilization_1h, u15)
    r5 = _first(row.rate_limit_ratio_5m, 0.0)
    r15 = _first(row.rate_limit_ratio_15m, r5)
    r1h = _first(row.rate_limit_ratio_1h, r15)

    active = row.active_instance_count
    utilization = 0.6 * u5 + 0.3 * u15 + 0.1 * u1h
    rate_limited = max(r5, 0.5 * r15, 0.25 * r1h)
    headroom = min(row.scale_allowance or 0.0, _SCALE_ALLOWANCE_CAP) if row.scalable else 0.0
    score = (active * (1 - utilization)
             + headroom * _SCALE_ALLOWANCE_WEIGHT
             - active * rate_limited * _RATE_LIMIT_WEIGHT)
    return (-score, -active, _first(row.utilization_current, u5), r5)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)

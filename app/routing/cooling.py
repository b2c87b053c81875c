"""When a model is set aside after failures in a row, and when it is tried again.

    failures below the limit --(the limit is reached)--> cooling --(time)--> due --(claim)--> probed
              ^                                             ^                                  |  |
              |                                             +------------- it fails -----------+  |
              +------------------------ any success, at any time --------------------------------+

A model's record is a value; the functions return the next one. Times are seconds on one monotonic
clock. A model without a record is healthy.

Source: specs/003 R36-R39.
"""

import enum
import math
from collections.abc import Callable
from typing import NamedTuple

# A cooling is up to this share shorter, so that the hosts of a service do not probe together.
_JITTER = 0.2
# A model that has not cooled for so long cools the next time for half as long.
_MILDER_AFTER_S = 60.0
# A record is forgotten when nothing has happened to it for so long.
_KEPT_S = 600.0


class CoolingSettings(NamedTuple):
    """How models cool.

    first_s   the first cooling
    most_s    the longest cooling
    failures  in a row until a model cools
    """

    first_s: float = 5.0
    most_s: float = 60.0
    failures: int = 3

    @property
    def longest_k(self) -> int:
        """Return from which k on coolings get no longer."""
        return max(0, math.ceil(math.log2(self.most_s / self.first_s)))


class Outcome(enum.Enum):
    """What an attempt says of its model; `NOTHING`: edge, client gone, 429, softly blamed, ..."""

    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    NOTHING = enum.auto()


class Record(NamedTuple):
    """What a host remembers of a model.

    failures     in a row
    k            the next cooling takes first_s * 2^k, unless time makes it milder
    until        end of the last cooling
    probe_until  until then a request has the probe; 0: none has it
    changed_at   when something happened last
    """

    failures: int = 0
    k: int = 0
    until: float = 0.0
    probe_until: float = 0.0
    changed_at: float = 0.0


HEALTHY = Record()


def after(record: Record, outcome: Outcome, began: float, now: float, settings: CoolingSettings,
          random: Callable[[], float]) -> Record:
    """Return a model's record after an attempt.

    began    when the attempt began
    random   returns 0..1, 1 excluded
    Returns  the same record where nothing changes

    A failure of an attempt that began before the last cooling was over is no news: requests that
    were under way then fail long after the first.

    Source: specs/003 R36, R37.
    """
    if outcome is Outcome.NOTHING:
        return record
    if outcome is Outcome.SUCCEEDED:
        if not record.failures:
            return record
        return Record(0, record.k, min(record.until, now), 0.0, now)
    if began < record.until:
        return record
    failures = record.failures + 1
    if failures < settings.failures:
        return record._replace(failures=failures, changed_at=now)
    k = _milder(record, now)
    cools_s = min(settings.first_s * 2 ** k, settings.most_s) * (1 - _JITTER * random())
    return Record(failures, min(k + 1, settings.longest_k), now + cools_s, 0.0, now)


def cooling(record: Record, now: float) -> float:
    """Return for how many seconds a model is set aside: it cools, or another request probes it."""
    return max(0.0, record.until - now, record.probe_until - now)


def is_due(record: Record, now: float, settings: CoolingSettings) -> bool:
    """Say whether a model's cooling is over and the request that tries it next is its probe.

    Source: specs/003 R38.
    """
    return record.failures >= settings.failures and not cooling(record, now)


def probed(record: Record, now: float, within_s: float) -> Record:
    """Return the record while a request has the probe of a model that is due.

    within_s  for how long it has it at most
    """
    return record._replace(probe_until=now + within_s, changed_at=now)


def given_back(record: Record, probe_until: float) -> Record:
    """Return the record after a probe without an outcome; the next request may have it.

    probe_until  of that probe; a later one is another request's
    """
    return record._replace(probe_until=0.0) if record.probe_until == probe_until else record


def forgotten_at(record: Record) -> float:
    """Return when a record is forgotten unless something happens. Source: specs/003 R39."""
    return max(record.changed_at, record.until, record.probe_until) + _KEPT_S


def _milder(record: Record, now: float) -> int:
    return max(0, record.k - int(max(0.0, now - record.until) / _MILDER_AFTER_S))

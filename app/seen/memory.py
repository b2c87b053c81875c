"""What one worker sees, until it writes that to the host's history a second later.

A request pays for some additions in memory. What is written of many requests at once costs little:
the metrics by model are counted here too. A worker that is killed loses at most the second that it
has not written.

Source: specs/008 R1, R3, R6, R7.
"""

import collections
import datetime
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from app import metrics
from app.routing.catalogue import OTHER
from app.routing.usage import Usage
from app.seen.history import BUCKETS_PER_OCTAVE, MOST_RECENT, History, Seen, bucket_of

# More models in a second than that are counted as one, `other`.
_MOST_MODELS = 256
# The seconds that a full disk may cost before counts are dropped.
_MOST_COUNTS = 20_000


class Memory:
    """Takes note of requests and attempts; told by the journal.

    history     where it is written, or None: nothing is kept
    wall_clock  returns seconds since the epoch
    active      requests under way
    streams     answers being passed on
    """

    def __init__(self, history: History | None = None,
                 wall_clock: Callable[[], float] = time.time) -> None:
        self._history, self._wall_clock = history, wall_clock
        self._counts: dict[tuple[str, str | int], int] = {}
        self._models: set[str] = set()
        self._first_bytes: dict[str, _FirstBytes] = {}
        self._tokens: dict[tuple[str, str], int] = {}
        self._recent = collections.deque[tuple[float, Mapping[str, Any]]](maxlen=MOST_RECENT)
        self.active = self.streams = 0

    def attempted(self, model: str, outcome: str, first_byte_ms: float | None) -> None:
        """Count an attempt as it ends.

        model          its label
        outcome        a status, a failure, or `abandoned`
        first_byte_ms  from its start to the first byte of a 2xx; None for anything else
        Cost           1 µs, no switch
        """
        if model not in self._models:
            if len(self._models) < _MOST_MODELS:
                self._models.add(model)
            else:
                model = OTHER
        counts, key = self._counts, (model, outcome)
        counts[key] = counts.get(key, 0) + 1
        if first_byte_ms is not None:
            times = self._first_bytes.get(model)
            if times is None:
                times = self._first_bytes[model] = _FirstBytes()
            times.add(first_byte_ms)

    def finished(self, status: int, line: Mapping[str, Any]) -> None:
        """Count a request as it ends.

        status  given to the client
        line    the fields of its log line; not changed later
        Cost    0.5 µs, no switch
        """
        key = "", status
        self._counts[key] = self._counts.get(key, 0) + 1
        self._recent.append((self._wall_clock(), line))

    def used(self, model: str, usage: Usage) -> None:
        """Count the tokens of a complete answer. Cost: 0.5 µs, no switch."""
        details = usage.prompt_tokens_details
        for kind, number in (("input", usage.prompt_tokens), ("output", usage.completion_tokens),
                             ("cached", details.cached_tokens if details else None)):
            if number:
                key = model, kind
                self._tokens[key] = self._tokens.get(key, 0) + number

    def write(self) -> None:
        """Write what has not been written; a worker calls this each second.

        Cost  0.5 ms, no switch
        """
        if self._history is None:
            return
        self._count()
        self._history.keep()
        if self._history.add(self._counts) or len(self._counts) > _MOST_COUNTS:
            self._counts.clear()
            self._models.clear()
        self._history.add_recent({"time": _utc(at), **line} for at, line in self._recent)
        self._recent.clear()
        self._history.show_worker(os.getpid(), self.active, self.streams)

    def _count(self) -> None:
        """Give the metrics their share."""
        while self._tokens:
            (model, kind), number = self._tokens.popitem()
            metrics.count(metrics.tokens_total, model, kind, amount=number)
        while self._first_bytes:
            model, times = self._first_bytes.popitem()
            for bucket, number in times.buckets.items():
                self._counts[model, bucket] = self._counts.get((model, bucket), 0) + number
            if model != OTHER:
                metrics.measure_many(metrics.model_first_byte_seconds, times.bounds(),
                                     times.total_ms / 1000, model)

    def end(self) -> None:
        """Write the rest: this worker is about to end."""
        if self._history is not None:
            self.write()
            self._history.forget_worker(os.getpid())

    def read(self, pause: Callable[[], None]) -> Seen:
        """Return what the whole host has seen; see History.read."""
        assert self._history is not None, "nothing is kept"
        self.write()
        return self._history.read(pause)


class _FirstBytes:
    """The first bytes of one model within a second."""

    __slots__ = ("buckets", "total_ms")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.total_ms = 0.0

    def add(self, ms: float) -> None:
        """Count one."""
        bucket = bucket_of(ms)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.total_ms += ms

    def bounds(self) -> dict[int, int]:
        """Return them by the buckets of the metric, each of which is as wide as an octave."""
        powers, counts = metrics.MODEL_FIRST_BYTE_POWERS, dict[int, int]()
        for bucket, number in self.buckets.items():
            power = bucket // BUCKETS_PER_OCTAVE + 1
            place = min(max(power - powers.start, 0), len(powers))
            counts[place] = counts.get(place, 0) + number
        return counts


def _utc(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds")

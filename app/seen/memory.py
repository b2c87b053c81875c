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


class _Share:
    """What was seen of one model since the last write."""

    __slots__ = ("outcomes", "buckets", "total_ms", "input", "output", "cached")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.buckets: dict[int, int] = {}
        self.total_ms = 0.0
        self.input = self.output = self.cached = 0

    def bounds(self) -> dict[int, int]:
        """Return the first bytes by the buckets of the metric, each as wide as an octave."""
        powers, counts = metrics.MODEL_FIRST_BYTE_POWERS, dict[int, int]()
        for bucket, number in self.buckets.items():
            power = bucket // BUCKETS_PER_OCTAVE + 1
            place = min(max(power - powers.start, 0), len(powers))
            counts[place] = counts.get(place, 0) + number
        return counts


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
        self._shares: dict[str, _Share] = {}
        self._statuses: dict[int, int] = {}
        # What could not be written yet.
        self._counts: dict[tuple[str, str | int], int] = {}
        self._recent = collections.deque[tuple[float, Mapping[str, Any]]](maxlen=MOST_RECENT)
        self.active = self.streams = 0

    def attempted(self, model: str, outcome: str, first_byte_ms: float | None) -> None:
        """Count an attempt as it ends.

        model          its label
        outcome        a status, a failure, or `abandoned`
        first_byte_ms  from its start to the first byte of a 2xx; None for anything else
        Cost           1 µs, no switch
        """
        share = self._shares.get(model) or self._new_share(model)
        outcomes = share.outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if first_byte_ms is not None:
            bucket, buckets = bucket_of(first_byte_ms), share.buckets
            buckets[bucket] = buckets.get(bucket, 0) + 1
            share.total_ms += first_byte_ms

    def _new_share(self, model: str) -> _Share:
        name = model if len(self._shares) < _MOST_MODELS else OTHER
        return self._shares.setdefault(name, _Share())

    def used(self, model: str, usage: Usage) -> None:
        """Count the tokens of a complete answer. Cost: 0.5 µs, no switch."""
        share = self._shares.get(model) or self._new_share(model)
        share.input += usage.prompt_tokens or 0
        share.output += usage.completion_tokens or 0
        if usage.prompt_tokens_details is not None:
            share.cached += usage.prompt_tokens_details.cached_tokens or 0

    def finished(self, status: int, line: Mapping[str, Any]) -> None:
        """Count a request as it ends.

        status  given to the client
        line    the fields of its log line; not changed later
        Cost    0.5 µs, no switch
        """
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._recent.append((self._wall_clock(), line))

    def write(self) -> None:
        """Write what has not been written; a worker calls this each second.

        Cost  0.5 ms, or 3 ms when sixty models were at work; no switch
        """
        if self._history is None:
            return
        self._gather()
        self._history.keep()
        if self._history.add(self._counts) or len(self._counts) > _MOST_COUNTS:
            self._counts.clear()
        self._history.add_recent({"time": _utc(at), **line} for at, line in self._recent)
        self._recent.clear()
        self._history.show_worker(os.getpid(), self.active, self.streams)

    def _gather(self) -> None:
        """Add up what is to be written, and give the metrics their share."""
        self._add("", self._statuses)
        self._statuses.clear()
        while self._shares:
            model, share = self._shares.popitem()
            self._add(model, share.outcomes)
            self._add(model, share.buckets)
            self._count(model, share)

    def _add(self, model: str, numbers: Mapping[Any, int]) -> None:
        for what, number in numbers.items():
            self._counts[model, what] = self._counts.get((model, what), 0) + number

    def _count(self, model: str, share: _Share) -> None:
        for kind in ("input", "output", "cached"):
            if number := getattr(share, kind):
                metrics.count(metrics.tokens_total, model, kind, amount=number)
        if share.buckets and model != OTHER:
            metrics.measure_many(metrics.model_first_byte_seconds, share.bounds(),
                                 share.total_ms / 1000, model)

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


def _utc(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds")

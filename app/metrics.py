"""Every metric, declared once.

Under gunicorn each worker counts in files of its own below PROMETHEUS_MULTIPROC_DIR, which
`gunicorn.conf.py` makes before it forks; whichever worker answers a scrape reads them all. The
label sets are closed: statuses, outcomes, causes, and models by `routing.selection.log_name`.
What one request costs here is measured by `make bench` (everything on, and off).

Source: specs/001 R13.
"""

import bisect
import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from app.config import runtime_directory
from app.eventloop import after_this_turn
from app.metric_files import METRICS, held

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "chutes_autopilot_"
# Gauges that hold a point in time; a scrape shows the age instead. Never is minus infinity, so
# that one worker without a feed is the worst of all.
_NEVER = -math.inf
_AGE_OF = {
    _PREFIX + "ready_snapshot_taken_at": (
        _PREFIX + "ready_snapshot_age_ms", "Age of the oldest worker's ranking; -1: missing."),
    _PREFIX + "ready_allowlist_taken_at": (
        _PREFIX + "ready_allowlist_age_ms", "Age of the oldest worker's allowlist; -1: missing."),
}

requests_active = Gauge(
    _PREFIX + "requests_active", "Chat completions under way.", multiprocess_mode="livesum")
requests_total = Counter(
    _PREFIX + "requests", "Chat completions ended, by status given to the client.", ["status"])
selection_total = Counter(
    _PREFIX + "selection", "Answers passed on, by model and upstream status.",
    ["model", "status"])
failover_reason_total = Counter(
    _PREFIX + "failover_reason", "Attempts that failed before commit, by reason.", ["reason"])
first_byte_seconds = Histogram(
    _PREFIX + "first_byte_seconds", "From a request's arrival to the first byte of its answer.",
    buckets=(.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120))
duration_seconds = Histogram(
    _PREFIX + "duration_seconds", "From a request's arrival to the end of its answer.",
    buckets=(.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800))
attempts = Histogram(
    _PREFIX + "attempts", "Attempts made for a request.", buckets=(1, 2, 3, 4, 6, 8))
response_bytes_total = Counter(
    _PREFIX + "response_bytes", "Bytes of answers' bodies passed on.")
streams_open = Gauge(
    _PREFIX + "streams_open", "Answers being passed on.", multiprocess_mode="livesum")
sticky_total = Counter(
    _PREFIX + "sticky",
    "Looked up choices: a hit, a miss, ignored (no candidate now); and those moved off by a "
    "failure.", ["result"])
refreshes_total = Counter(
    _PREFIX + "refreshes", "Feeds fetched, by whichever worker, and what came of it.",
    ["feed", "result"])
dropped_entries_total = Counter(
    _PREFIX + "dropped_entries", "Bad entries of fetched feeds.", ["feed"])
client_gone_total = Counter(
    _PREFIX + "client_gone", "Clients that left, or stopped reading, before their answer's end.")
cuts_total = Counter(
    _PREFIX + "cuts", "Answers cut after commit, by cause.",
    ["cause"])
unfinished_streams_total = Counter(
    _PREFIX + "unfinished_streams", "Event streams that ended properly but without [DONE].")
overloaded_total = Counter(
    _PREFIX + "overloaded", "Chat completions refused with overloaded.")
internal_errors_total = Counter(
    _PREFIX + "internal_errors", "Chat completions that met a defect of the router.")
resends_total = Counter(
    _PREFIX + "resends", "Requests sent again because a pooled connection was stale.")
sticky_errors_total = Counter(
    _PREFIX + "sticky_errors", "Calls to a sticky store that failed, by store.", ["store"])

_ready_snapshot_taken_at = Gauge(
    _PREFIX + "ready_snapshot_taken_at", "When the ranking was fetched.",
    multiprocess_mode="livemin")
_ready_allowlist_taken_at = Gauge(
    _PREFIX + "ready_allowlist_taken_at", "When the allowlist was fetched.",
    multiprocess_mode="livemin")
_ready_candidates = Gauge(
    _PREFIX + "ready_candidates", "Ranked candidates, of the worker that has fewest.",
    multiprocess_mode="livemin")
_ready_allowlist_size = Gauge(
    _PREFIX + "ready_allowlist_size", "Allowlisted ids, of the worker that has fewest.",
    multiprocess_mode="livemin")


# What is counted within one turn of the event loop and not written yet. Each touch of a file costs
# microseconds, and a request would make a dozen; a worker that is killed loses one turn of them.
_unwritten: dict[Any, float] = {}


@functools.lru_cache(maxsize=4096)
def _child(metric: Counter | Gauge, *labels: str | int) -> Any:
    return metric.labels(*labels)


def count(metric: Counter | Gauge, *labels: str | int, amount: float = 1) -> None:
    """Add to a counter or gauge, with the values of its labels in order."""
    _add(_child(metric, *labels) if labels else metric, amount)


def measure(histogram: Histogram, value: float) -> None:
    """Put a value into a histogram; what its observe() does, but written later."""
    _add(histogram._sum, value)
    _add(histogram._buckets[bisect.bisect_left(histogram._upper_bounds, value)], 1)


def _add(child: Any, amount: float) -> None:
    if not _unwritten:
        after_this_turn(write_counts)
    _unwritten[child] = _unwritten.get(child, 0) + amount


def write_counts() -> None:
    """Write what has been counted where every worker can read it. Cost: 1 µs for each number."""
    try:
        while _unwritten:
            child, amount = _unwritten.popitem()
            if amount:
                child.inc(amount)
    finally:
        if _unwritten:
            # A file could not grow; the others' turn comes all the same.
            after_this_turn(write_counts)


def show_zeros(reasons: Iterable[str], causes: Iterable[str]) -> None:
    """Show at nought what has not happened yet: a rate cannot see a series' first value.

    reasons, causes  the closed sets of failovers and cuts
    """
    for reason in reasons:
        failover_reason_total.labels(reason)
    for cause in causes:
        cuts_total.labels(cause)
    for status in (200, 400, 429, 499, 500, 502, 503, 504):
        requests_total.labels(status)
    for result in ("hit", "miss", "ignored", "moved"):
        sticky_total.labels(result)
    for store in ("embedded", "distributed"):
        sticky_errors_total.labels(store)
    for feed in ("models", "utilization"):
        dropped_entries_total.labels(feed)
        for result in ("ok", "failed"):
            refreshes_total.labels(feed, result)


def show_picture(candidates: int, snapshot_taken_at: float | None, allowlist_size: int,
                 allowlist_taken_at: float | None) -> None:
    """Set this worker's ready_* gauges.

    The times are seconds on the host's monotonic clock, which its processes share; None: never.
    """
    _ready_candidates.set(candidates)
    _ready_allowlist_size.set(allowlist_size)
    _ready_snapshot_taken_at.set(_NEVER if snapshot_taken_at is None else snapshot_taken_at)
    _ready_allowlist_taken_at.set(_NEVER if allowlist_taken_at is None else allowlist_taken_at)


def count_refresh(feed: str, dropped: int | None) -> None:
    """Count a fetch of a feed; `dropped` is its number of bad entries, None: it failed."""
    count(refreshes_total, feed, "failed" if dropped is None else "ok")
    if dropped:
        count(dropped_entries_total, feed, amount=dropped)


class _WithAges:
    """Shows another collector's points in time as ages."""

    def __init__(self, collect: Callable[[], Iterable[Metric]], now: float) -> None:
        self._collect = collect
        self._now = now

    def collect(self) -> Iterable[Metric]:
        for metric in self._collect():
            if metric.name not in _AGE_OF:
                yield metric
                continue
            [sample] = metric.samples
            name, says = _AGE_OF[metric.name]
            age_ms = -1.0 if sample.value == _NEVER else (self._now - sample.value) * 1000
            yield GaugeMetricFamily(name, says, value=age_ms)


def exposition() -> bytes:
    """Return all metrics of all workers as Prometheus text.

    Cost: reads some files per worker; some milliseconds, no switch.
    """
    write_counts()
    registry = CollectorRegistry()
    source = CollectorRegistry()
    MultiProcessCollector(source)
    registry.register(_WithAges(source.collect, time.monotonic()))
    directory = runtime_directory()
    assert directory is not None, "gunicorn.conf.py makes it"
    with held(directory / METRICS):
        return generate_latest(registry)

"""Every metric, declared once.

Under gunicorn each worker counts in files of its own below PROMETHEUS_MULTIPROC_DIR, which
`gunicorn.conf.py` makes before it forks; whichever worker answers a scrape reads them all. The
label sets are closed: statuses, outcomes, causes, and models by `routing.selection.log_name`.

Source: specs/001 R13.
"""

import math
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

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
client_gone_total = Counter(
    _PREFIX + "client_gone", "Clients that left, or stopped reading, before their answer's end.")
cuts_total = Counter(
    _PREFIX + "cuts", "Answers cut because the upstream's broke off after commit, by cause.",
    ["cause"])
unfinished_streams_total = Counter(
    _PREFIX + "unfinished_streams", "Event streams that ended properly but without [DONE].")
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


def show_picture(candidates: int, snapshot_taken_at: float | None, allowlist_size: int,
                 allowlist_taken_at: float | None) -> None:
    """Set this worker's ready_* gauges.

    The times are seconds on the host's monotonic clock, which its processes share; None: never.
    """
    _ready_candidates.set(candidates)
    _ready_allowlist_size.set(allowlist_size)
    _ready_snapshot_taken_at.set(_NEVER if snapshot_taken_at is None else snapshot_taken_at)
    _ready_allowlist_taken_at.set(_NEVER if allowlist_taken_at is None else allowlist_taken_at)


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

    Cost: reads a file or two per worker there has been; some milliseconds, no switch.
    """
    registry = CollectorRegistry()
    source = CollectorRegistry()
    MultiProcessCollector(source)
    registry.register(_WithAges(source.collect, time.monotonic()))
    return generate_latest(registry)

"""Every metric, declared once.

Under gunicorn each worker counts in files of its own below PROMETHEUS_MULTIPROC_DIR, which
`gunicorn.conf.py` makes before it forks. The worker that answers a scrape reads the files of all.
`metric_files.py` looks after them. A worker without files counts in its memory and shows its own
numbers only.

The label sets are closed: statuses, outcomes, causes, and models by View.label.
`make bench` measures what a request costs with metrics and without.

Source: specs/001 R13.
"""

import bisect
import collections
import functools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.values import MutexValue

from app.config import runtime_directory
from app.eventloop import when_idle
from app.logs import StateChange
from app.metric_files import MetricFiles

logger = logging.getLogger(__name__)

NAMESPACE = "chutes_autopilot"
# "Never" as a point in time, so that a worker without a feed is the worst of all.
NEVER = -math.inf

# The bounds of the histogram by model are so many times two, in milliseconds: 64 ms to 131 s.
MODEL_FIRST_BYTE_POWERS = range(6, 18)

# How prometheus_client names the files of the kinds of metrics that there are here.
_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemin")
_growing = StateChange(logger, "no room for more metrics", "room for more metrics again")
_sharing = StateChange(logger, "metrics are not shared", "metrics are shared again")


def _own_files() -> MetricFiles | None:
    """Have this process count in files of its own; before a metric is made."""
    directory = runtime_directory()
    if directory is None:
        # Without gunicorn the values are in memory.
        return None
    try:
        return MetricFiles(directory, _FILES)
    except OSError as error:
        _sharing.failing(type(error).__name__)
        values.ValueClass = MutexValue
        return None


files = _own_files()

_counter = functools.partial(Counter, namespace=NAMESPACE)
_sum_of_workers = functools.partial(Gauge, namespace=NAMESPACE, multiprocess_mode="livesum")
_worst_worker = functools.partial(Gauge, namespace=NAMESPACE, multiprocess_mode="livemin")
_BOUNDS: dict[Histogram, Sequence[float]] = {}


def _histogram(name: str, text: str, buckets: Sequence[float], **options: Any) -> Histogram:
    histogram = Histogram(name, text, buckets=buckets, namespace=NAMESPACE, **options)
    _BOUNDS[histogram] = buckets
    return histogram


requests_active = _sum_of_workers("requests_active", "Chat completions under way.")
requests_total = _counter(
    "requests", "Chat completions ended, by status given to the client.", ["status"])
selection_total = _counter(
    "selection", "Answers passed on, by model and upstream status.", ["model", "status"])
failover_reason_total = _counter(
    "failover_reason", "Attempts that failed before commit, by reason.", ["reason"])
edge_failures_total = _counter(
    "edge_failures", "Failed attempts that say nothing of a model, by kind.", ["kind"])
failover_budget_exhausted_total = _counter(
    "failover_budget_exhausted", "Failures answered because the worker's attempts were used up.")
first_byte_seconds = _histogram(
    "first_byte_seconds", "From a request's arrival to the first byte of its answer.",
    buckets=(.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120))
duration_seconds = _histogram(
    "duration_seconds", "From a request's arrival to the end of its answer.",
    buckets=(.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800))
model_first_byte_seconds = _histogram(
    "model_first_byte_seconds", "From an attempt's start to the first byte of its 2xx, by model.",
    labelnames=["model"], buckets=[2 ** power / 1000 for power in MODEL_FIRST_BYTE_POWERS])
tokens_total = _counter(
    "tokens", "Tokens that complete answers say they have used; cached are a part of input.",
    ["model", "kind"])
attempts = _histogram("attempts", "Attempts made for a request.", buckets=(1, 2, 3, 4, 6, 8))
response_bytes_total = _counter("response_bytes", "Bytes of answers' bodies passed on.")
streams_open = _sum_of_workers("streams_open", "Answers being passed on.")
sticky_total = _counter(
    "sticky", "Requests by what became of the client's choice: hit, miss, ignored, moved.",
    ["result"])
refreshes_total = _counter(
    "refreshes", "Fetches of a feed by any worker, and their result.", ["feed", "result"])
dropped_entries_total = _counter("dropped_entries", "Bad entries of fetched feeds.", ["feed"])
catalogue_changes_total = _counter(
    "catalogue_changes", "Models of the models feed that appeared or are gone.", ["change"])
cooldowns_total = _counter(
    "cooldowns", "Coolings of models begun after failures in a row.", ["model"])
cooling_errors_total = _counter(
    "cooling_errors", "Calls to the store of cooling that failed.")
client_gone_total = _counter(
    "client_gone", "Clients that left, or stopped reading, before their answer's end.")
cuts_total = _counter("cuts", "Answers cut after commit, by cause.", ["cause"])
unfinished_streams_total = _counter(
    "unfinished_streams", "Event streams that ended properly but without [DONE].")
overloaded_total = _counter("overloaded", "Chat completions refused with overloaded.")
internal_errors_total = _counter(
    "internal_errors", "Chat completions that met a defect of the router.")
resends_total = _counter(
    "resends", "Requests sent again because a pooled connection was stale.")
sticky_errors_total = _counter(
    "sticky_errors", "Calls to a sticky store that failed, by store.", ["store"])

_ready_snapshot_taken_at = _worst_worker("ready_snapshot_taken_at", "When the ranking was fetched.")
_ready_allowlist_taken_at = _worst_worker(
    "ready_allowlist_taken_at", "When the allowlist was fetched.")
_feed_taken_at = _worst_worker(
    "feed_taken_at", "When the content of a feed was current.", labelnames=["feed"])
# Until the first view is shown; the CA bundle is loaded before that.
_ready_snapshot_taken_at.set(NEVER)
_ready_allowlist_taken_at.set(NEVER)
for _feed in ("models", "utilization"):
    _feed_taken_at.labels(_feed).set(NEVER)
_ready_candidates = _worst_worker("ready_candidates", "Ranked candidates of the worst worker.")
_ready_allowlist_size = _worst_worker(
    "ready_allowlist_size", "Allowlisted ids of the worst worker.")


# What was counted and is not written yet. Each write to a file costs microseconds and a request
# would make a dozen, so a busy worker writes the numbers of many requests together. One that is
# killed loses those.
_uncounted: dict[Any, float] = {}
_unobserved: dict[Histogram, list[float]] = collections.defaultdict(list)
# A worker that always has something to do writes so often.
_WRITE_EVERY_S = 0.1


@functools.lru_cache(maxsize=4096)
def _child(metric: Counter | Gauge | Histogram, *labels: str | int) -> Any:
    return metric.labels(*labels)


def count(metric: Counter | Gauge, *labels: str | int, amount: float = 1) -> None:
    """Add to a counter or gauge, with the values of its labels in order.

    Where there is no room for a new label's number, that number is lost and nothing else.
    """
    child = _labelled(metric, labels) if labels else metric
    if child is not None:
        if not _uncounted and not _unobserved:
            when_idle(write_counts, _WRITE_EVERY_S)
        _uncounted[child] = _uncounted.get(child, 0) + amount


def measure(histogram: Histogram, value: float) -> None:
    """Put a value into a histogram without labels."""
    if not _uncounted and not _unobserved:
        when_idle(write_counts, _WRITE_EVERY_S)
    _unobserved[histogram].append(value)


def measure_many(histogram: Histogram, counts: Mapping[int, int], total: float,
                 *labels: str) -> None:
    """Put many values into a histogram at once, with the values of its labels in order.

    Where there is no room for new labels the values are lost, and nothing else.

    counts  number of a bucket, from 0 -> how many values fall into it
    total   sum of all values
    Cost    1 µs for each bucket, no switch
    """
    child = _labelled(histogram, labels) if labels else histogram
    if child is not None:
        child._sum.inc(total)
        for bucket, number in counts.items():
            child._buckets[bucket].inc(number)


def _labelled(metric: Counter | Gauge | Histogram, labels: tuple[str | int, ...]) -> Any:
    try:
        return _child(metric, *labels)
    except OSError as error:
        _growing.failing(type(error).__name__)
        return None


def write_counts() -> None:
    """Write what was counted and measured, so that every worker can read it.

    Raises  OSError if a file cannot grow; what was to be written then is lost (a number, or those
            that one histogram has gathered), the others are written later
    Cost    1 µs for each number, no switch
    """
    try:
        while _uncounted:
            child, amount = _uncounted.popitem()
            if amount:
                child.inc(amount)
        while _unobserved:
            histogram, measured = _unobserved.popitem()
            bounds = _BOUNDS[histogram]
            measure_many(histogram, collections.Counter(
                bisect.bisect_left(bounds, value) for value in measured), sum(measured))
    finally:
        if _uncounted or _unobserved:
            when_idle(write_counts, _WRITE_EVERY_S)


def keep_files() -> bool:
    """Make this worker's files anew if somebody has removed them; a worker calls this each second.

    Returns  whether there are files to read
    Cost     20 µs, no switch
    """
    if files is None:
        return False
    try:
        made = files.keep()
    except OSError as error:
        _sharing.failing(type(error).__name__)
        return False
    if made:
        logger.warning("the directory that the workers share was removed, and is made anew")
    _sharing.working()
    if files.has_room():
        _growing.working()
    return True


def show_zeros(reasons: Iterable[str], edge_kinds: Iterable[str], causes: Iterable[str]) -> None:
    """Export known label values as zero from the start: rate() ignores a series' first sample.

    reasons     of failovers, all
    edge_kinds  of edge failures, all
    causes      of cuts, all
    """
    for reason in reasons:
        failover_reason_total.labels(reason)
    for kind in edge_kinds:
        edge_failures_total.labels(kind)
    for cause in causes:
        cuts_total.labels(cause)
    for status in (200, 400, 429, 499, 500, 502, 503, 504):
        requests_total.labels(status)
    for result in ("hit", "miss", "ignored", "moved"):
        sticky_total.labels(result)
    for store in ("embedded", "distributed"):
        sticky_errors_total.labels(store)
    for change in ("appeared", "gone"):
        catalogue_changes_total.labels(change)
    for feed in ("models", "utilization"):
        dropped_entries_total.labels(feed)
        for result in ("ok", "failed"):
            refreshes_total.labels(feed, result)


def show_view(candidates: int, snapshot_taken_at: float | None, allowlist_size: int,
              allowlist_taken_at: float | None, utilization_as_of: float | None) -> None:
    """Set this worker's ready_* gauges, and when each feed was current: by its own word, if any.

    Times are seconds of the host's monotonic clock, which all its processes share; None: never.
    """
    _ready_candidates.set(candidates)
    _ready_allowlist_size.set(allowlist_size)
    _ready_snapshot_taken_at.set(NEVER if snapshot_taken_at is None else snapshot_taken_at)
    _ready_allowlist_taken_at.set(NEVER if allowlist_taken_at is None else allowlist_taken_at)
    for feed, taken_at in (("models", allowlist_taken_at), ("utilization", utilization_as_of)):
        _feed_taken_at.labels(feed).set(NEVER if taken_at is None else taken_at)


def count_refresh(feed: str, dropped: int | None) -> None:
    """Count a fetch of a feed.

    dropped  how many of its entries were bad; None: the fetch failed
    """
    count(refreshes_total, feed, "failed" if dropped is None else "ok")
    if dropped:
        count(dropped_entries_total, feed, amount=dropped)

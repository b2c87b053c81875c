"""The metrics of all workers as Prometheus text.

The worker that answers a scrape reads the files of all. Without files it shows its own metrics.

Source: specs/001 R13, specs/007 R14.
"""

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from app import metrics
from app.metrics import NAMESPACE, NEVER, keep_files, write_counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# These gauges hold a point in time. A scrape shows the age instead: its name, units in a second.
AGE_OF = {
    f"{NAMESPACE}_ready_snapshot_taken_at": (
        f"{NAMESPACE}_ready_snapshot_age_ms", 1000,
        "Age of the oldest worker's ranking; -1: missing."),
    f"{NAMESPACE}_ready_allowlist_taken_at": (
        f"{NAMESPACE}_ready_allowlist_age_ms", 1000, "Age of the oldest allowlist; -1: missing."),
    f"{NAMESPACE}_feed_taken_at": (
        f"{NAMESPACE}_feed_age_seconds", 1,
        "Age of a feed's content in the worst worker; -1: missing."),
}

MODEL_COOLING = f"{NAMESPACE}_model_cooling"


class _WithAges:
    """Passes another collector's metrics on, with points in time turned into ages."""

    def __init__(self, collect: Callable[[], Iterable[Metric]], now: float) -> None:
        self._collect = collect
        self._now = now

    def collect(self) -> Iterable[Metric]:
        for metric in self._collect():
            if metric.name not in AGE_OF:
                yield metric
                continue
            name, units, says = AGE_OF[metric.name]
            labels = list(metric.samples[0].labels)
            ages = GaugeMetricFamily(name, says, labels=labels)
            for sample in metric.samples:
                age = -1.0 if sample.value == NEVER else (self._now - sample.value) * units
                ages.add_metric([sample.labels[label] for label in labels], age)
            yield ages


class _Cooling:
    """What is the same whichever worker shows it: the models that the host has set aside."""

    def __init__(self, cooling: Mapping[str, int]) -> None:
        self._cooling = cooling

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            MODEL_COOLING, "1 while a model is set aside after failures.", labels=["model"])
        for label, value in self._cooling.items():
            family.add_metric([label], value)
        yield family


def exposition(cooling: Mapping[str, int]) -> bytes:
    """Return all metrics of all workers as Prometheus text.

    cooling  label of a model that has failed lately -> 1 while this host has set it aside, else 0

    Without files to read these are the metrics of this worker alone.

    Cost: reads some files per worker; some milliseconds, no switch.
    """
    write_counts()
    registry, collect = CollectorRegistry(), REGISTRY.collect
    if metrics.files is not None and keep_files():
        metrics.files.forget_the_dead()
        collect = metrics.files.collect
    registry.register(_WithAges(collect, time.monotonic()))
    registry.register(_Cooling(cooling))
    return generate_latest(registry)

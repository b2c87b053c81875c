"""What is counted, and written when the event loop has nothing else to do."""

import collections
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from app import metrics


@pytest.fixture
def due(monkeypatch):
    """What is called when there is nothing else to do."""
    due = []
    monkeypatch.setattr(metrics, "when_idle", lambda call, at_most_s: due.append(call))
    monkeypatch.setattr(metrics, "_uncounted", {})
    monkeypatch.setattr(metrics, "_unobserved", collections.defaultdict(list))
    return due


def test_what_is_measured_is_observed_together(due):
    """001-R13"""
    histogram = metrics._histogram("seconds", "", buckets=(1, 2), registry=CollectorRegistry())
    for value in (1.5, 1.0, 99.0):
        metrics.measure(histogram, value)

    def shown():
        return {(sample.name.removeprefix("chutes_autopilot_"),
                 sample.labels.get("le")): sample.value for family in histogram.collect()
                for sample in family.samples if not sample.name.endswith("_created")}

    assert shown()["seconds_count", None] == 0
    [write] = due
    write()
    assert shown() == {("seconds_bucket", "1.0"): 1, ("seconds_bucket", "2.0"): 2,
                       ("seconds_bucket", "+Inf"): 3, ("seconds_count", None): 3,
                       ("seconds_sum", None): 101.5}


class Number:
    """A counter in a file that cannot grow, the first time."""

    def __init__(self, *errors):
        self.errors, self.value = list(errors), 0

    def inc(self, amount):
        if self.errors:
            raise self.errors.pop()
        self.value += amount


def test_one_number_that_cannot_be_written_does_not_keep_the_others(due):
    """001-R13"""
    numbers = [Number(), Number(OSError()), Number()]
    for number in numbers:
        metrics.count(number)
        metrics.count(number, amount=2)
    [write] = due
    with pytest.raises(OSError):
        write()
    for again in due[1:]:
        again()
    assert [number.value for number in numbers] == [3, 0, 3]


def test_a_worker_that_has_no_view_yet_has_never_fetched_anything():
    """001-R13"""
    shown = subprocess.run(
        [sys.executable, "-c", "from app import metrics; print("
         "metrics._ready_snapshot_taken_at._value.get(),"
         "metrics._ready_allowlist_taken_at._value.get())"],
        capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["-inf", "-inf"]

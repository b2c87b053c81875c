"""What is counted within a turn of the event loop, and written at its end."""

import pytest
from prometheus_client import CollectorRegistry, Histogram

from app import metrics


@pytest.fixture
def turn_ends(monkeypatch):
    """What is called at the end of the turn."""
    due = []
    monkeypatch.setattr(metrics, "after_this_turn", due.append)
    monkeypatch.setattr(metrics, "_unwritten", {})
    return due


@pytest.mark.parametrize("values", [[0.5], [1.0], [1.5, 2.0], [2.5], [0.0, 1.0, 99.0]])
def test_a_value_measured_is_a_value_observed(turn_ends, values):
    """001-R13: on the edge of a bucket too."""
    ours, theirs = (Histogram("seconds", "", buckets=(1, 2), registry=CollectorRegistry())
                    for _ in range(2))
    for value in values:
        metrics.measure(ours, value)
        theirs.observe(value)
    [write] = turn_ends
    write()
    shown = [[(s.name, s.labels, s.value) for family in histogram.collect()
              for s in family.samples if not s.name.endswith("_created")]
             for histogram in (ours, theirs)]
    assert shown[0] == shown[1]


class Number:
    """A counter in a file that cannot grow, the first time."""

    def __init__(self, *errors):
        self.errors, self.value = list(errors), 0

    def inc(self, amount):
        if self.errors:
            raise self.errors.pop()
        self.value += amount


def test_one_number_that_cannot_be_written_does_not_keep_the_others(turn_ends):
    """001-R13"""
    numbers = [Number(), Number(OSError()), Number()]
    for number in numbers:
        metrics.count(number)
        metrics.count(number, amount=2)
    [write] = turn_ends
    with pytest.raises(OSError):
        write()
    for again in turn_ends[1:]:
        again()
    assert [number.value for number in numbers] == [3, 0, 3]

"""What a host remembers, and what it does not."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from app import metrics
from app.eventloop import pause
from app.seen.history import SLICE_S, SLICES, History, ModelSeen, bucket_of
from app.seen.memory import Memory

NOW = 1.7e9


class Host:
    """Workers that share a file, and a clock."""

    def __init__(self, folder):
        self.path, self.now = folder / "seen.sqlite", 10_000.0

    def worker(self):
        return Memory(History(self.path, lambda: self.now, lambda: NOW + self.now),
                      lambda: NOW + self.now)


@pytest.fixture
def host(tmp_path):
    tmp_path.chmod(0o700)
    return Host(tmp_path)


def line(number):
    return {"request_id": str(number), "status": 200}


def test_whichever_worker_is_asked_tells_of_all(host):
    """008-R1"""
    one, other = host.worker(), host.worker()
    for worker in (one, other):
        worker.attempted("a", "upstream_503", None)
        worker.attempted("a", "200", 100.0)
        worker.finished(200, line(1))
        worker.write()
    other.attempted("b", "abandoned", None)
    other.write()
    for worker in (one, other):
        seen = worker.read(pause)
        assert seen.models["a"].statuses == {"200": 2}
        assert seen.models["a"].failures == {"upstream_503": 2}
        assert seen.models["b"] == ModelSeen(outcomes={"abandoned": 1})
        assert seen.slices[-1] == {"200": 2} and len(seen.recent) == 2


def test_what_was_written_outlives_the_worker_and_the_rest_is_lost(host):
    """008-R1"""
    killed = host.worker()
    killed.finished(200, line(1))
    killed.write()
    killed.finished(200, line(2))
    assert [each["request_id"] for each in host.worker().read(pause).recent] == ["1"]


def test_a_worker_that_ends_writes_the_rest(host, monkeypatch):
    """008-R1"""
    ending = host.worker()
    ending.active = 1
    ending.finished(200, line(1))
    ending.end()
    monkeypatch.setattr("os.getpid", lambda: -1)
    asked = host.worker()
    assert asked.read(pause).slices[-1] == {"200": 1} and asked.read(pause).active == 0


def test_what_is_under_way_is_forgotten_with_a_worker_that_writes_no_more(host, monkeypatch):
    """008-R1"""
    killed, other = host.worker(), host.worker()
    killed.active, killed.streams = 3, 2
    killed.write()
    monkeypatch.setattr("os.getpid", lambda: -1)
    other.active = 1
    seen = other.read(pause)
    assert (seen.active, seen.streams) == (4, 2)
    host.now += 6
    seen = other.read(pause)
    assert (seen.active, seen.streams) == (1, 0)


def test_ten_minutes_are_kept(host):
    """008-R2"""
    worker = host.worker()
    worker.finished(200, line(1))
    worker.attempted("a", "200", 10.0)
    worker.write()
    host.now += (SLICES - 1) * SLICE_S
    seen = worker.read(pause)
    assert seen.slices[0] == {"200": 1} and seen.models["a"].answers == 1
    host.now += SLICE_S
    seen = worker.read(pause)
    assert not any(seen.slices) and not seen.models
    assert worker._history._database.read("SELECT count(*) FROM counts") == [(0,)]


def test_more_models_in_a_second_than_can_be_named_are_counted_as_one(host):
    """008-R2"""
    worker = host.worker()
    for number in range(300):
        worker.attempted(f"model-{number}", "200", 10.0)
    models = worker.read(pause).models
    assert len(models) == 257 and models["other"].answers == 44
    worker.attempted("model-299", "200", 10.0)
    assert worker.read(pause).models["model-299"].answers == 1


def test_the_last_fifty_requests_of_the_host_are_kept_the_newest_first(host):
    """008-R2, 008-R4, 008-R5"""
    one, other = host.worker(), host.worker()
    for number in range(90):
        host.now += 0.001
        (one, other)[number % 2].finished(200, line(number))
    one.write()
    recent = other.read(pause).recent
    assert len(recent) == 50
    assert other._history._database.read("SELECT count(*) FROM recent") == [(50,)]
    times = [each["time"] for each in recent]
    assert times == sorted(times, reverse=True) and recent[0]["request_id"] == "89"


@given(st.lists(st.floats(1, 600_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_a_median_is_right_to_a_tenth(times, share):
    """008-R2"""
    buckets = [bucket_of(ms) for ms in times]
    seen = ModelSeen(first_bytes={bucket: buckets.count(bucket) for bucket in buckets})
    least = next(ms for place, ms in enumerate(sorted(times), 1) if place >= share * len(times))
    assert least == pytest.approx(seen.first_byte_ms(share), rel=0.1, abs=1)


@given(st.lists(st.floats(0, 600_000), min_size=1, max_size=50))
def test_the_metric_gets_the_same_first_bytes_in_wider_buckets(times):
    """008-R7"""
    worker, powers = Memory(), metrics.MODEL_FIRST_BYTE_POWERS
    histogram = Histogram("seconds", "", ["model"], buckets=[2 ** power for power in powers],
                          registry=CollectorRegistry())
    for ms in times:
        worker.attempted("a", "200", ms)
    share = worker._shares["a"]
    metrics.measure_many(histogram, share.bounds(), share.total_ms, "a")
    [family] = histogram.collect()
    shown = {sample.labels.get("le"): sample.value for sample in family.samples
             if sample.name.endswith("_bucket")}
    # A time on a bound is above it, where prometheus_client counts it below.
    assert shown == {str(float(2 ** power)): sum(ms < 2 ** power for ms in times)
                     for power in powers} | {"+Inf": len(times)}
    assert ("seconds_sum", sum(times)) in [(each.name, each.value) for each in family.samples]


def test_no_first_byte_has_no_median():
    """008-R1"""
    assert ModelSeen().first_byte_ms(0.5) is None
    assert bucket_of(0.0) == bucket_of(-1.0) == 0


def test_while_the_file_cannot_be_written_counts_wait_and_requests_do_not(host):
    """008-R3"""
    worker, other = host.worker(), host.worker()
    worker.finished(200, line(1))
    other._history._database.write("BEGIN IMMEDIATE")
    worker.write()
    worker.finished(200, line(2))
    other._history._database.write("ROLLBACK")
    assert worker.read(pause).slices[-1] == {"200": 2}


def test_a_file_that_is_removed_is_made_anew(host):
    """008-R3"""
    worker = host.worker()
    worker.write()
    for path in host.path.parent.iterdir():
        path.unlink()
    worker.finished(200, line(1))
    worker.write()
    assert host.worker().read(pause).slices[-1] == {"200": 1}


def test_without_a_file_nothing_is_remembered_and_nothing_fails(tmp_path):
    """008-R3"""
    worker = Memory(History(pathlib.Path(tmp_path, "none", "seen"), lambda: 1.0, lambda: NOW))
    worker.finished(200, line(1))
    seen = worker.read(pause)
    assert not seen.models and not seen.recent and (seen.active, seen.streams) == (0, 0)


def test_the_changes_of_a_day_are_kept_up_to_a_thousand(host):
    """008-R2, 008-R5"""
    history = host.worker()._history
    history.catalogue_changed("gone", ["old"])
    host.now += 86_401
    history.catalogue_changed("appeared", ["a", "b"])
    assert [each[1:] for each in history.read(pause).changes] == [
        ("b", "appeared"), ("a", "appeared")]
    history.catalogue_changed("gone", map(str, range(2000)))
    assert len(history.read(pause).changes) == 1000


def test_the_last_failure_of_a_feed_is_kept(host):
    """008-R5"""
    one, other = host.worker()._history, host.worker()._history
    one.feed_failed("models", "status 500")
    host.now += 1
    one.feed_failed("models", "timeout")
    assert other.read(pause).failures == {"models": (NOW + host.now, "timeout")}
    json.dumps(other.read(pause).failures)

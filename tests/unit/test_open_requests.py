"""How many requests of a host are open on each model."""

import multiprocessing
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import open_requests
from app.open_requests import OpenRequest, OpenRequests
from app.routing.catalogue import Model
from app.routing.ranking import UtilizationRow
from app.routing.view import Views

NAMES = ["a", "b", "c"]


class Host:
    """Workers of one host: a clock, and views that all have the same feed."""

    def __init__(self, directory=None):
        self.now, self.directory, self.views = 100.0, directory, []

    def worker(self):
        views = Views(lambda: self.now, lambda _: None)
        views.take_models(map(Model, NAMES))
        views.take_rows([UtilizationRow(name, 1) for name in NAMES])
        self.views.append(views)
        self.now += 1
        return OpenRequests(views, self.directory, lambda: self.now)

    def feed(self):
        """Let a new feed come that knows of all that has begun."""
        self.now += 1
        for views in self.views:
            views.take_rows([UtilizationRow(name, 1) for name in NAMES])
        self.now += 1

    def counts(self, *workers):
        """Return what each worker knows once it has looked at the others."""
        self.now += 1
        for worker in workers:
            worker.keep()
        self.now += 1
        return [{name: count for name, count in worker.counts().items() if count}
                for worker in workers]


def opened(worker, model):
    request = OpenRequest(worker)
    request.begin(model)
    return request


def test_a_request_is_open_on_the_model_of_its_last_attempt_until_it_ends():
    """003-R48"""
    host = Host()
    worker = host.worker()
    request = opened(worker, "a")
    assert worker.counts()["a"] == 1
    request.begin("b")
    assert (worker.counts()["a"], worker.counts()["b"]) == (0, 1)
    request.end()
    request.end()
    assert host.counts(worker) == [{}]


def test_a_feed_knows_of_what_began_before_it():
    """003-R48"""
    host = Host()
    worker = host.worker()
    before = opened(worker, "a")
    host.feed()
    after = opened(worker, "a")
    assert host.counts(worker) == [{"a": 1}]
    before.end()
    assert host.counts(worker) == [{"a": 1}]
    after.end()
    assert host.counts(worker) == [{}]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([*NAMES, "other", None])),
                max_size=30))
def test_counts_are_those_of_a_plain_model_whatever_comes_when(steps):
    """003-R48"""
    host = Host()
    workers = [host.worker() for _ in range(3)]
    requests = [[] for _ in workers]
    for which, model in steps:
        if model is None:
            host.feed()
        elif len(requests[which]) > 2:
            requests[which].pop(0)[0].end()
        else:
            requests[which].append((opened(workers[which], model), model, host.now))
        host.now += 1
    for which, views in enumerate(host.views):
        expected = dict.fromkeys([*NAMES, "other"], 0)
        for _, model, began in requests[which]:
            expected[model] += began > views.current.snapshot.as_of
        assert host.counts(workers[which]) == [{k: v for k, v in expected.items() if v}]


def test_the_workers_of_a_host_know_each_others_requests(tmp_path):
    """003-R62"""
    host = Host(tmp_path / "open")
    one, two, three = (host.worker() for _ in range(3))
    first, *_ = [opened(one, "a"), opened(one, "b"), opened(two, "a"), opened(three, "c")]
    assert host.counts(one, two, three) == [{"a": 2, "b": 1, "c": 1}] * 3
    first.end()
    assert host.counts(one, two, three) == [{"a": 1, "b": 1, "c": 1}] * 3
    host.feed()
    opened(two, "b")
    assert host.counts(one, two, three) == [{"b": 1}] * 3


def test_others_are_read_at_most_every_50_ms_and_own_requests_count_at_once(tmp_path):
    """003-R62"""
    host = Host(tmp_path / "open")
    one, two = host.worker(), host.worker()
    host.counts(one, two)
    opened(two, "a")
    opened(one, "b")
    assert one.counts() == {"b": 1}
    host.now += 0.051
    assert one.counts() == {"a": 1, "b": 1}


def hold_open(directory, ready):
    worker = Host(directory).worker()
    for _ in range(5):
        opened(worker, "a")
    ready.set()
    signal.pause()


def test_what_a_killed_worker_had_open_does_not_stay(tmp_path):
    """003-R62"""
    host = Host(tmp_path / "open")
    mine = host.worker()
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    other = spawn.Process(target=hold_open, args=(tmp_path / "open", ready))
    other.start()
    assert ready.wait(30)
    assert host.counts(mine) == [{"a": 5}]
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert host.counts(mine) == [{}]
    # Nor does it come back with the worker that takes the slot.
    assert host.counts(host.worker(), mine) == [{}, {}]
    assert len(list((tmp_path / "open").iterdir())) == 2


@pytest.mark.parametrize("odd", ["slot-x", "slot-7", "slot-8/"])
def test_what_stands_in_the_directory_and_is_no_workers_file_costs_nothing(tmp_path, odd):
    """003-R62"""
    host = Host(tmp_path / "open")
    one, two = host.worker(), host.worker()
    if odd.endswith("/"):
        (tmp_path / "open" / odd).mkdir()
    else:
        (tmp_path / "open" / odd).touch()
    opened(one, "a")
    assert host.counts(one, two) == [{"a": 1}] * 2


def test_files_that_come_and_go_between_two_looks_cost_nothing(tmp_path, monkeypatch):
    """003-R62"""
    host = Host(tmp_path / "open")
    one, two = host.worker(), host.worker()
    opened(one, "a")
    seen = open_requests.slot_paths
    for lacks in ({0}, {1}, {0, 1}):
        monkeypatch.setattr(open_requests, "slot_paths", lambda directory: {
            number: path for number, path in seen(directory).items() if number not in lacks})
        monkeypatch.setattr(open_requests, "free_slots", lambda directory: [5])
        for worker in (one, two):
            worker.keep()
    monkeypatch.undo()
    assert host.counts(one, two) == [{"a": 1}] * 2


def test_files_that_are_gone_are_made_anew_and_a_directory_that_cannot_be_costs_the_others(
        tmp_path):
    """003-R62, 007-R14"""
    host = Host(tmp_path / "open")
    one, two, three = (host.worker() for _ in range(3))
    opened(one, "a")
    assert host.counts(one, two, three) == [{"a": 1}] * 3
    for path in (tmp_path / "open").iterdir():
        path.unlink()
    (tmp_path / "open").rmdir()
    # In this order the second one gets the same slot again, with another file.
    host.counts(three, two, one)
    opened(two, "b")
    assert host.counts(one, two, three) == [{"a": 1, "b": 1}] * 3
    nowhere = Host(tmp_path / "no" / "where")
    alone = nowhere.worker()
    opened(alone, "a")
    assert nowhere.counts(alone) == [{"a": 1}]


@pytest.mark.parametrize("many", [510, 511, 600])
def test_more_models_than_a_file_has_room_for_are_counted_by_their_own_worker(tmp_path, many):
    """003-R62"""
    host = Host(tmp_path / "open")
    one, two = host.worker(), host.worker()
    for number in range(many):
        opened(one, f"model {number}")
    opened(one, "a")
    assert host.counts(two) == [{"a": 1} if many < 511 else {}]
    assert host.counts(one)[0]["a"] == 1 and len(host.counts(one)[0]) == many + 1

"""The Redis sticky store's own decisions, with a stand-in for the client library."""

import logging
import pathlib

import pytest
import redis

from app.sticky.redis import DEADLINE_S, RedisStickyStore
from app.sticky.sqlite import SqliteStickyStore


class Library:
    """Stands in for redis.Redis: a dict, a clock that each call moves, an error to raise."""

    def __init__(self):
        self.entries, self.calls, self.now, self.error, self.takes_s = {}, [], 100.0, None, 0.001

    def _call(self, name):
        self.calls.append(name)
        self.now += self.takes_s
        if self.error is not None:
            raise self.error

    def getex(self, key, ex):
        self._call("getex")
        return self.entries.get(key)

    def set(self, key, model, ex):
        self._call("set")
        self.entries[key] = model

    def discard(self, keys, args):
        self._call("discard")
        if self.entries.get(keys[0]) == args[0]:
            del self.entries[keys[0]]


@pytest.fixture
def library():
    return Library()


@pytest.fixture
def store_for(library):
    stores = []

    def build():
        host_store = SqliteStickyStore(pathlib.Path(":memory:"), 60, 10, lambda: library.now)
        store = RedisStickyStore("redis://h", 60, host_store, lambda: library.now)
        store._redis, store._discard = library, library.discard
        stores.append(host_store)
        return store
    yield build
    for host_store in stores:
        host_store.close()


def used(store, model, client="client"):
    choice = store.get(client)
    store.put(client, model, choice)
    return choice.model


def test_a_choice_made_while_redis_was_away_is_told_to_it_when_it_is_back(store_for, library):
    """005-R9"""
    one, two = store_for(), store_for()
    library.error = redis.ConnectionError()
    used(one, "a")
    assert used(one, "a") == "a"
    library.error, library.now = None, library.now + 10
    assert used(one, "a") == "a"
    assert two.get("client").model == "a"


def test_the_hosts_own_store_is_kept_up_to_date_and_its_entries_in_use_do_not_expire(
        store_for, library):
    """005-R9, 005-R6"""
    store = store_for()
    for _ in range(10):
        used(store, "a")
        library.now += 30
    library.error = redis.ConnectionError()
    for _ in range(10):
        assert used(store, "a") == "a"
        library.now += 30


def test_an_unchanged_choice_is_one_call(store_for, library):
    """005-R9"""
    store = store_for()
    used(store, "a")
    library.calls.clear()
    used(store, "a")
    assert library.calls == ["getex"]


def test_three_failures_in_a_row_open_the_breaker_and_pauses_grow(store_for, library, caplog):
    """005-R9"""
    store = store_for()
    library.error = redis.ConnectionError()
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            store.get("client")
        assert len(library.calls) == 3
        for pause, calls in [(1.1, 4), (1.1, 4), (1.0, 5), (4.1, 6), (8.1, 7), (8.1, 8)]:
            library.now += pause
            store.get("client")
            store.get("client")
            assert len(library.calls) == calls
        library.error, library.now = None, library.now + 9
        store.get("client")
        store.get("client")
    assert len(library.calls) == 10
    assert [(r.kind, r.failing) for r in caplog.records] == [("failing", True), ("failing", False)]


def test_a_failure_between_successes_is_no_outage(store_for, library):
    """005-R9"""
    store = store_for()
    for turn in range(20):
        library.error = redis.TimeoutError() if turn % 2 else None
        store.get("client")
    assert len(library.calls) == 20


def test_all_calls_for_one_request_share_one_deadline(store_for, library):
    """005-R9"""
    store = store_for()
    library.takes_s = 0.03
    choice = store.get("client")
    store.discard("client", choice)
    store.put("client", "a", choice)
    assert library.calls == ["getex", "discard"] and choice.spent_s >= DEADLINE_S
    assert store._host_store.get("client").model == "a"


def test_a_redis_that_refuses_writes_is_said_once_and_not_taken_for_down(
        store_for, library, caplog):
    """005-R7, 005-R9"""
    store = store_for()
    with caplog.at_level(logging.INFO):
        for turn in range(10):
            library.error = None
            choice = store.get("client")
            library.error = redis.ResponseError("OOM")
            store.put("client", "a", choice)
            assert turn == 0 or choice.model == "a"
        library.error = None
        used(store, "b")
    assert [(r.kind, r.failing) for r in caplog.records] == [
        ("refusing", True), ("refusing", False)]


def test_garbage_is_no_entry(store_for, library):
    """005-R7"""
    store = store_for()
    for answer in (5, ["a"], b"a", True):
        library.entries = {"chutes-autopilot:sticky:client": answer}
        assert store.get("client").model is None

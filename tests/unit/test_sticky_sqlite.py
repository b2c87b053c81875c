"""The SQLite sticky store against a plain model of it, and in trouble."""

import logging
import multiprocessing
import pathlib
import sqlite3

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.sticky.sqlite import SqliteStickyStore
from app.sticky.store import NoStickiness, StickyChoice

TTL_S, BOUND = 10.0, 3
MEMORY = pathlib.Path(":memory:")
NOTHING = StickyChoice()
CLIENTS, MODELS = st.sampled_from("uvwxyz"), st.sampled_from("ab")


class StickyTable(RuleBasedStateMachine):
    """005-R4, 005-R5, 005-R6, 005-R17: what is kept, for how long, and what goes first."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.store = SqliteStickyStore(MEMORY, TTL_S, BOUND, lambda: self.now)
        # client -> (model, last use, when a list made it), least recently used first
        self.model = {}

    @rule(client=CLIENTS, model=MODELS, by_list=st.booleans())
    def put(self, client, model, by_list):
        self.now += 0.25  # two uses are never at the same time
        self.store.put(client, model, self.store.get(client), by_list)
        before, _, moved_at = self.model.pop(client, (None, None, None))
        if by_list or before != model:
            moved_at = self.now if by_list else None
        self.model[client] = (model, self.now, moved_at)
        while len(self.model) > BOUND:
            del self.model[next(iter(self.model))]

    @rule(client=CLIENTS)
    def get(self, client):
        kept, used_at, moved_at = self.model.get(client, (None, 0.0, None))
        if kept is None or self.now - used_at >= TTL_S:
            kept = moved_at = None
        assert self.store.get(client) == StickyChoice(kept, moved_at=moved_at)

    @rule(client=CLIENTS, model=MODELS)
    def discard(self, client, model):
        self.store.discard(client, StickyChoice(model))
        if self.model.get(client, (None,))[0] == model:
            del self.model[client]

    @rule(seconds=st.sampled_from([0.5, 5.0, TTL_S]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def bounded(self):
        assert len(self.store) <= BOUND

    def teardown(self):
        self.store.close()


StickyTable.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestStickyTable = StickyTable.TestCase


def test_an_entry_lives_from_its_last_use():
    """005-R6"""
    now = [0.0]
    store = SqliteStickyStore(MEMORY, 10.0, 5, lambda: now[0])
    store.put("client", "m", NOTHING)
    now[0] = 9.0
    store.put("client", "m", NOTHING)
    now[0] = 18.9
    assert store.get("client").model == "m"
    now[0] = 19.0
    assert store.get("client").model is None
    store.close()


def test_the_time_at_which_a_list_made_a_choice_stays_until_another_choice_is_made():
    """005-R17"""
    now = [0.0]
    store = SqliteStickyStore(MEMORY, 10.0, 5, lambda: now[0])
    for at, model, by_list, moved_at in (
            (1.0, "m", False, None), (1.001, "m", True, 1.001), (2.0, "m", False, 1.001),
            (2.001, "m", True, 2.001), (3.0, "n", False, None), (4.0, "m", True, 4.0)):
        now[0] = at
        store.put("client", model, NOTHING, by_list)
        assert store.get("client") == StickyChoice(model, moved_at=moved_at)
    store.close()


def test_switched_off_it_keeps_nothing():
    """005-R6"""
    store = NoStickiness()
    store.put("client", "m", NOTHING)
    store.discard("client", StickyChoice("m"))
    assert store.get("client").model is None


def test_what_the_same_age_says_is_not_written_again(tmp_path):
    """005-R8"""
    now = [0.0]
    store = SqliteStickyStore(tmp_path / "s", 1000.0, 5, lambda: now[0])
    store.put("client", "m", NOTHING)
    changes = store._database._connection.total_changes
    now[0] = 0.5
    store.put("client", "m", NOTHING)
    assert store._database._connection.total_changes == changes
    now[0] = 2.0
    store.put("client", "m", NOTHING)
    assert store._database._connection.total_changes > changes
    store.close()


def write_many(path, number):
    store = SqliteStickyStore(path, 60.0, 50, iter(range(10**6)).__next__)
    for n in range(500):
        store.put(f"client {number} {n % 60}", "m", NOTHING)
        store.get(f"client {1 - number} {n % 60}")
        store.discard(f"client {number} {(n + 30) % 60}", StickyChoice("m"))
    store.close()


def test_two_processes_write_at_once_and_the_count_stays_right(tmp_path):
    """005-R8"""
    path = tmp_path / "s"
    fork = multiprocessing.get_context("spawn")
    processes = [fork.Process(target=write_many, args=(path, number)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        [(entries,)] = connection.execute("SELECT entries FROM size")
        [(rows,)] = connection.execute("SELECT count(*) FROM sticky")
    connection.close()
    assert entries == rows <= 50


def corrupt(path):
    path.write_bytes(b"SQLite format 3\0" + b"junk" * 2000)


def foreign(path):
    path.write_bytes(b"not a database at all")


def directory(path):
    path.mkdir()


@pytest.mark.parametrize("trouble", [corrupt, foreign, directory])
def test_a_store_that_cannot_be_opened_costs_stickiness_and_nothing_else(
        tmp_path, caplog, trouble):
    """005-R7"""
    trouble(tmp_path / "s")
    with caplog.at_level(logging.INFO):
        store = SqliteStickyStore(tmp_path / "s", 60.0, 5, lambda: 0.0)
        store.put("client", "m", NOTHING)
        assert store.get("client").model is None
        store.discard("client", StickyChoice("m"))
    assert len(caplog.records) == 1 and caplog.records[0].failing
    store.close()


def test_a_disk_that_is_full_costs_stickiness_and_nothing_else(tmp_path, caplog):
    """005-R7"""
    store = SqliteStickyStore(tmp_path / "s", 60.0, 10**6, lambda: 1.0)
    store._database._connection.execute("PRAGMA max_page_count = 20")
    with caplog.at_level(logging.INFO):
        for number in range(3000):
            store.put(f"client {number}", "m", NOTHING)
    assert caplog.records and caplog.records[0].failing
    assert store.get("client 0").model == "m"
    store.close()


def test_a_choice_discarded_by_another_request_is_kept_again_by_a_success(tmp_path):
    """005-R4, 005-R5: however fresh it was when it was looked up."""
    store = SqliteStickyStore(tmp_path / "sticky.sqlite", 60, 10, lambda: 1000.0)
    store.put("key", "a", store.get("key"))
    choice = store.get("key")
    store.discard("key", store.get("key"))
    store.put("key", "a", choice)
    assert store.get("key").model == "a"
    store.close()

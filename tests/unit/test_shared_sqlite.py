"""A shared SQLite file in trouble."""

import logging
import sqlite3

import pytest

from app.shared.sqlite import SharedDatabase

SCHEMA = "CREATE TABLE IF NOT EXISTS seen (name TEXT PRIMARY KEY, times INTEGER NOT NULL)"
SEEN = ("INSERT INTO seen VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET times = times + 1 "
        "RETURNING times")


class Watched:
    """A database with a clock to set, and the number of its failures."""

    def __init__(self, path):
        self.now, self.failures = 0.0, 0
        self.database = SharedDatabase(path, SCHEMA, lambda: self.now, self.fail, "counts",
                                       store="of a test")

    def fail(self):
        self.failures += 1

    def seen(self):
        return self.database.write(SEEN, "m")

    def times(self):
        return self.database.read("SELECT times FROM seen WHERE name = ?", "m")


@pytest.fixture
def watched_at(caplog):
    caplog.set_level(logging.INFO)
    opened = []

    def build(path):
        opened.append(Watched(path))
        return opened[-1]
    yield build
    for watched in opened:
        watched.database.close()


def said(caplog):
    assert {(line.message, line.store) for line in caplog.records} <= {("counts", "of a test")}
    return [(line.kind, line.failing, line.why) for line in caplog.records]


def test_what_one_connection_writes_another_reads_and_a_statement_returns_its_rows(
        tmp_path, watched_at, caplog):
    """005-R8"""
    one, two = watched_at(tmp_path / "db"), watched_at(tmp_path / "db")
    assert two.times() == []
    assert [one.seen(), two.seen()] == [[(1,)], [(2,)]]
    assert one.times() == [(2,)]
    assert one.failures == 0 and not caplog.records


def test_a_locked_file_is_not_waited_for_and_recovers(tmp_path, watched_at, caplog):
    """005-R7"""
    watched = watched_at(tmp_path / "db")
    holder = sqlite3.connect(tmp_path / "db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert [watched.seen() for _ in range(3)] == [None, None, None]
    holder.execute("ROLLBACK")
    assert watched.seen() == [(1,)]
    assert said(caplog) == [("write", True, "OperationalError"), ("write", False, "")]
    assert watched.failures == 3
    holder.close()


def test_reads_that_work_do_not_say_that_writes_work(tmp_path, watched_at, caplog):
    """005-R7: as on a full disk."""
    watched = watched_at(tmp_path / "db")
    watched.database._connection.execute("PRAGMA query_only = 1")
    for _ in range(5):
        assert watched.seen() is None and watched.times() == []
    assert said(caplog) == [("write", True, "OperationalError")]
    assert watched.failures == 5


def test_a_file_that_could_not_be_opened_is_tried_again_after_ten_seconds(
        tmp_path, watched_at, caplog):
    """005-R7"""
    (tmp_path / "db").write_bytes(b"not a database at all")
    watched = watched_at(tmp_path / "db")
    (tmp_path / "db").unlink()
    watched.now = 9.0
    assert watched.seen() is None and watched.failures == 1
    watched.now = 11.0
    assert watched.seen() == [(1,)]
    assert said(caplog) == [("open", True, "DatabaseError"), ("open", False, "")]


def test_a_file_takes_half_of_the_room_there_is(tmp_path, watched_at, monkeypatch):
    """005-R8"""
    class Room:
        f_bavail, f_frsize = 400, 1024

    monkeypatch.setattr("os.statvfs", lambda path: Room)
    connection = watched_at(tmp_path / "db").database._connection
    assert connection.execute("PRAGMA max_page_count").fetchone() == (200,)

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
    (tmp_path / "db").mkdir()
    watched = watched_at(tmp_path / "db")
    (tmp_path / "db").rmdir()
    watched.now = 9.0
    assert watched.seen() is None and watched.failures == 1
    watched.now = 11.0
    assert watched.seen() == [(1,)]
    assert said(caplog) == [("open", True, "OperationalError"), ("open", False, "")]


def test_a_file_that_is_damaged_before_it_is_opened_is_made_anew(tmp_path, watched_at, caplog):
    """007-R40"""
    (tmp_path / "db").write_bytes(b"not a database at all")
    watched = watched_at(tmp_path / "db")
    watched.now = 10.0
    assert watched.seen() == [(1,)] and watched.failures == 1
    assert said(caplog) == [("open", True, "DatabaseError"), ("open", False, "")]


def damaged(folder):
    for path in (folder / "db", folder / "db-wal"):
        with open(path, "r+b") as file:
            file.write(b"x" * path.stat().st_size)


def replaced(folder):
    """Put another SQLite file in the place of this one, by its name and in its content."""
    with sqlite3.connect(folder / "db") as other:
        other.execute("DROP TABLE seen")
    other.close()


@pytest.mark.parametrize("damage, why", [
    (damaged, "DatabaseError"), (replaced, "OperationalError")])
def test_a_file_that_is_damaged_in_use_is_made_anew(tmp_path, watched_at, caplog, damage, why):
    """007-R40: once, by whoever finds it."""
    one, two = watched_at(tmp_path / "db"), watched_at(tmp_path / "db")
    for _ in range(3):
        one.seen()
    damage(tmp_path)
    # What a connection has in memory is whole.
    one.database._connection.execute("PRAGMA shrink_memory")
    one.now = two.now = 10.0
    assert one.times() == [] and one.failures == 1
    assert one.seen() == [(1,)]
    # The other still has the removed file, and finds it damaged too.
    made = (tmp_path / "db").stat().st_ino
    two.database._connection.execute("PRAGMA shrink_memory")
    assert two.times() == []
    assert two.seen() == [(2,)] and one.times() == [(2,)]
    assert (tmp_path / "db").stat().st_ino == made
    assert one.failures == 1
    assert said(caplog)[0] == ("read", True, why)


def test_a_file_is_made_anew_every_ten_seconds_at_most(tmp_path, watched_at, monkeypatch):
    """007-R40"""
    watched, opened, connect = watched_at(tmp_path / "db"), [], sqlite3.connect
    monkeypatch.setattr("sqlite3.connect", lambda *given, **more: (
        opened.append(watched.now) or connect(*given, **more)))
    for second in range(40):
        watched.now = float(second)
        watched.database.read("SELECT * FROM nothing")
    assert opened == [10.0, 20.0, 30.0] and watched.failures == 4


def test_trouble_that_is_no_damage_removes_nothing(tmp_path, watched_at):
    """007-R40: a lock, a full disk, and a statement that is refused"""
    watched = watched_at(tmp_path / "db")
    watched.seen()
    holder = sqlite3.connect(tmp_path / "db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    watched.now = 10.0
    assert watched.seen() is None
    holder.execute("ROLLBACK")
    holder.close()
    pages = watched.database._connection.execute("PRAGMA page_count").fetchone()[0]
    watched.database._connection.execute(f"PRAGMA max_page_count = {pages}")
    while watched.database.write(SEEN, "n" * 900 + str(watched.failures)) is not None:
        watched.now += 0.001
        watched.database.write("INSERT INTO seen VALUES (?, 1)", str(watched.now) + "n" * 900)
    assert watched.database.write("INSERT INTO seen VALUES ('m', NULL)") is None
    assert watched.times() == [(1,)]


def test_a_file_takes_half_of_the_room_there_is(tmp_path, watched_at, monkeypatch):
    """005-R8"""
    class Room:
        f_bavail, f_frsize = 400, 1024

    monkeypatch.setattr("os.statvfs", lambda path: Room)
    connection = watched_at(tmp_path / "db").database._connection
    assert connection.execute("PRAGMA max_page_count").fetchone() == (200,)

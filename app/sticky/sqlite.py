"""Sticky choices shared by the workers of one host, in SQLite.

Write-ahead log, no sync, in shared memory: a read and a write together cost 20 µs with ten entries
and 40 with a million, whose pages are in no cache (`tests/bench/sticky.py`). The bound is held by a
trigger that counts, since counting rows would take time that grows with them. Times are the host's
monotonic clock, which its processes share.

Source: specs/005 R4-R8.
"""

import logging
import os
import pathlib
import sqlite3
from collections.abc import Callable
from typing import Any

from app.metrics import count, sticky_errors_total
from app.sticky.store import StickyChoice

logger = logging.getLogger(__name__)

# SQLite waits for a lock with the whole event loop standing still: hardly at all, then.
_BUSY_MS = 5
_OPENING_S = 1.0
_PAGE_BYTES = 1024
# Room for seven million entries; address space only.
_MAPPED_BYTES = 1 << 30
# A store that could not be opened is tried again this much later.
_OPEN_AGAIN_S = 10.0
# A use that changes nothing but the age is not written again within this part of an entry's life.
_COALESCED = 0.001

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sticky (
    client TEXT PRIMARY KEY, model TEXT NOT NULL, used_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON sticky (used_at);
CREATE TABLE IF NOT EXISTS size (entries INTEGER NOT NULL);
INSERT INTO size SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM size);
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON sticky BEGIN
    UPDATE size SET entries = entries - 1;
END;
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON sticky BEGIN
    UPDATE size SET entries = entries + 1;
    DELETE FROM sticky WHERE client = (SELECT client FROM sticky ORDER BY used_at LIMIT 1)
        AND (SELECT entries FROM size) > {max_entries};
END;
"""
_GET = "SELECT model FROM sticky WHERE client = ? AND used_at > ?"
_PUT = """
INSERT INTO sticky (client, model, used_at) VALUES (?, ?, ?)
ON CONFLICT (client) DO UPDATE SET model = excluded.model, used_at = excluded.used_at
WHERE model <> excluded.model OR used_at < excluded.used_at - ?
"""
_DISCARD = "DELETE FROM sticky WHERE client = ? AND model = ?"


class SqliteStickyStore:
    """A bounded table in least-recently-used order, in a file.

    path         of the database; made if it is not there
    ttl_s        life of an entry since its last use, seconds
    max_entries  beyond this the least recently used entries go
    clock        returns seconds, monotonic and the same for all processes

    Any failure counts as "no entry": it is counted, and logged once per change of state.
    """

    def __init__(self, path: pathlib.Path, ttl_s: float, max_entries: int,
                 clock: Callable[[], float]) -> None:
        self._path = path
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._clock = clock
        self._failing: set[str] = set()
        self._connection: sqlite3.Connection | None = None
        self._open_again_at = 0.0
        self._opened()

    def _opened(self) -> sqlite3.Connection | None:
        """Return the database, opened if it was not and if it is time to try."""
        if self._connection is None and self._clock() >= self._open_again_at:
            self._open_again_at = self._clock() + _OPEN_AGAIN_S
            self._attempt("open", self._open)
        return self._connection

    def _open(self) -> None:
        connection = sqlite3.connect(self._path, timeout=_OPENING_S, isolation_level=None)
        try:
            # A write copies whole pages, and a read of a mapped page costs no system call.
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute(f"PRAGMA max_page_count = {self._most_pages()}")
            connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(
                "BEGIN IMMEDIATE;" + _SCHEMA.format(max_entries=self._max_entries) + "COMMIT;")
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection

    def _most_pages(self) -> int:
        # Half of what there is room for: counters live there too, which could not do without.
        try:
            room, size = os.statvfs(self._path.parent), self._path.stat().st_size
        except FileNotFoundError:
            return _MAPPED_BYTES // _PAGE_BYTES
        return (room.f_bavail * room.f_frsize + size) // 2 // _PAGE_BYTES

    def get(self, client_key: str) -> StickyChoice:
        """Look a client up."""
        rows = self._run("read", _GET, client_key, self._clock() - self._ttl_s)
        return StickyChoice(rows[0][0] if rows else None)

    def put(self, client_key: str, model: str, choice: StickyChoice) -> None:
        """Keep `model` for the client; its life starts anew."""
        self._run("write", _PUT, client_key, model, self._clock(), self._ttl_s * _COALESCED)

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice`."""
        self._run("write", _DISCARD, client_key, choice.model)

    def __len__(self) -> int:
        rows = self._run("read", "SELECT entries FROM size")
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()

    def _run(self, kind: str, statement: str, *values: object) -> list[Any]:
        connection = self._opened()
        if connection is None:
            return []
        rows: list[Any] = []
        self._attempt(kind, lambda: rows.extend(connection.execute(statement, values)))
        return rows

    def _attempt(self, kind: str, action: Callable[[], None]) -> None:
        try:
            action()
        except sqlite3.Error as error:
            count(sticky_errors_total, "embedded")
            self._say(kind, failing=True, why=type(error).__name__)
        else:
            self._say(kind, failing=False, why="")

    def _say(self, kind: str, failing: bool, why: str) -> None:
        # By kind: on a full disk reads go on working, and would each say that all is well.
        if failing is not (kind in self._failing):
            (self._failing.add if failing else self._failing.discard)(kind)
            logger.log(logging.WARNING if failing else logging.INFO, "sticky store", extra={
                "store": "embedded", "kind": kind, "failing": failing, "why": why})

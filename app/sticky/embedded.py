"""Sticky choices shared by the workers of one host, in SQLite.

Write-ahead log, no sync, in shared memory: a read costs 5 µs, a write 10, whatever the number of
entries. The bound is held by a trigger that counts, since counting rows would take time that
grows with them. Times are the host's monotonic clock, which its processes share.

Source: specs/005 R4-R8.
"""

import logging
import pathlib
import sqlite3
from collections.abc import Callable

from app.metrics import sticky_errors_total

logger = logging.getLogger(__name__)

# SQLite waits for a lock with the whole event loop standing still: hardly at all, then.
_BUSY_MS = 5
_OPENING_S = 5.0
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


class EmbeddedStickyStore:
    """A bounded table in least-recently-used order, in a file.

    path         of the database; made if it is not there
    ttl_s        life of an entry since its last use, seconds
    max_entries  beyond this the least recently used entries go
    clock        returns seconds, monotonic and the same for all processes

    Any failure counts as "no entry": it is counted, and logged once per change of state.
    """

    def __init__(self, path: pathlib.Path, ttl_s: float, max_entries: int,
                 clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._failing = False
        self._connection: sqlite3.Connection | None = None
        self._attempt(lambda: self._open(path, max_entries))

    def _open(self, path: pathlib.Path, max_entries: int) -> None:
        connection = sqlite3.connect(path, timeout=_OPENING_S, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(
            "BEGIN IMMEDIATE;" + _SCHEMA.format(max_entries=max_entries) + "COMMIT;")
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        self._connection = connection

    def get(self, client_key: str) -> str | None:
        """Return the client's model, or None if there is no live entry."""
        rows = self._run(_GET, client_key, self._clock() - self._ttl_s)
        return rows[0][0] if rows else None

    def put(self, client_key: str, model: str, known: str | None) -> None:
        """Keep `model` for the client; its life starts anew."""
        self._run(_PUT, client_key, model, self._clock(), self._ttl_s * _COALESCED)

    def discard(self, client_key: str, model: str) -> None:
        """Forget the client's entry if it names `model`."""
        self._run(_DISCARD, client_key, model)

    def __len__(self) -> int:
        rows = self._run("SELECT entries FROM size")
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()

    def _run(self, statement: str, *values: object) -> list[tuple[str]]:
        connection = self._connection
        if connection is None:
            return []
        rows: list[tuple[str]] = []
        self._attempt(lambda: rows.extend(connection.execute(statement, values)))
        return rows

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except sqlite3.Error as error:
            sticky_errors_total.labels("embedded").inc()
            self._say(failing=True, why=type(error).__name__)
        else:
            self._say(failing=False, why="")

    def _say(self, failing: bool, why: str) -> None:
        if failing is not self._failing:
            self._failing = failing
            logger.log(logging.WARNING if failing else logging.INFO, "sticky store",
                       extra={"store": "embedded", "failing": failing, "why": why})

"""Sticky choices shared by the workers of one host, in SQLite.

A read and a write together cost 20 µs with ten entries, and 40 µs with a million whose pages are
in no cache (`tests/bench/sticky.py`). A trigger counts the entries to hold their bound, because
counting rows would take time that grows with them. Times are on the host's monotonic clock, which
all its processes share.

Source: specs/005 R4-R8, R17.
"""

import functools
import pathlib
from collections.abc import Callable

from app.metrics import count, sticky_errors_total
from app.shared.sqlite import SharedDatabase
from app.sticky.store import StickyChoice

# A success that would only renew an entry is not written within this share of the entry's life.
_UNWRITTEN_SHARE = 0.001

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sticky (
    client TEXT PRIMARY KEY, model TEXT NOT NULL, used_at REAL NOT NULL, moved_at REAL)
    WITHOUT ROWID;
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
_GET = "SELECT model, moved_at FROM sticky WHERE client = ? AND used_at > ?"
_PUT = """
INSERT INTO sticky (client, model, used_at, moved_at) VALUES (?, ?, ?, ?)
ON CONFLICT (client) DO UPDATE SET model = excluded.model, used_at = excluded.used_at,
    moved_at = CASE model WHEN excluded.model THEN coalesce(excluded.moved_at, moved_at)
                          ELSE excluded.moved_at END
WHERE model <> excluded.model OR used_at < excluded.used_at - ? OR excluded.moved_at IS NOT NULL
"""
_DISCARD = "DELETE FROM sticky WHERE client = ? AND model = ?"


class SqliteStickyStore:
    """A table of at most `max_entries` rows; the least recently used row goes first.

    path         of the database file, which is made if it is missing
    ttl_s        life of an entry since its last use, seconds
    max_entries  rows kept
    clock        returns seconds, monotonic and the same for all processes

    A failure counts as "no entry".
    """

    def __init__(self, path: pathlib.Path, ttl_s: float, max_entries: int,
                 clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._database = SharedDatabase(
            path, _SCHEMA.format(max_entries=max_entries), clock,
            functools.partial(count, sticky_errors_total, "embedded"),
            "sticky store", store="embedded")

    def get(self, client_key: str) -> StickyChoice:
        """Look up a client's model."""
        rows = self._database.read(_GET, client_key, self._clock() - self._ttl_s)
        model, moved_at = rows[0] if rows else (None, None)
        return StickyChoice(model, moved_at=moved_at)

    # Only a write renews an entry's life.
    look = get

    def put(self, client_key: str, model: str, choice: StickyChoice,
            by_list: bool = False) -> None:
        """Keep `model` for the client; its life starts anew."""
        now = self._clock()
        self._database.write(_PUT, client_key, model, now, now if by_list else None,
                             self._ttl_s * _UNWRITTEN_SHARE)

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice.model`."""
        self._database.write(_DISCARD, client_key, choice.model)

    def keep(self) -> None:
        """Begin anew if somebody has removed the file."""
        self._database.keep()

    def __len__(self) -> int:
        rows = self._database.read("SELECT entries FROM size")
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        """Close the database."""
        self._database.close()

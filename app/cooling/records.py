"""The records of all models that are not healthy, shared by the workers of one host.

They are rows of a SQLite file. Each worker has a copy of them. A shared word changes with each
change of a row, and a worker reads the rows anew when it does, so a request on a healthy day costs
one look at memory. A row has a version, and a worker that would change it says which version it
knows: of two that would begin a cooling or take a probe at once, one is refused.

A store in trouble costs cooling and nothing else. After a call that failed there is none for a
second, since a locked file holds up the event loop for 5 ms. A worker that dies between the change
and the word leaves others with old copies for at most a second.

Source: specs/003 R39-R41.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from app.metrics import cooling_errors_total, count
from app.routing.cooling import HEALTHY, Record, forgotten_at
from app.shared.sqlite import SharedDatabase
from app.shared.word import SharedWord

_MOST_ROWS = 500
_LONGEST_NAME = 256
_REST_S = 1.0
# Each time another worker was faster, and there are a few of them.
_MOST_TRIES = 10

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS cooling (
    model TEXT PRIMARY KEY, failures INTEGER NOT NULL, k INTEGER NOT NULL, until REAL NOT NULL,
    probe_until REAL NOT NULL, changed_at REAL NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS bounded AFTER INSERT ON cooling
WHEN (SELECT count(*) FROM cooling) > {_MOST_ROWS} BEGIN
    DELETE FROM cooling WHERE model = (SELECT model FROM cooling ORDER BY changed_at LIMIT 1);
END;
"""
_ALL = "SELECT model, version, failures, k, until, probe_until, changed_at FROM cooling"
_PUT = """
INSERT INTO cooling (model, failures, k, until, probe_until, changed_at, version)
VALUES (?, ?, ?, ?, ?, ?, 1)
ON CONFLICT (model) DO UPDATE SET failures = excluded.failures, k = excluded.k,
    until = excluded.until, probe_until = excluded.probe_until, changed_at = excluded.changed_at,
    version = version + 1
WHERE version = ? RETURNING version
"""
# Pairs of model and version, as JSON. What has changed meanwhile stays.
_FORGET = """
DELETE FROM cooling
WHERE (model, version) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))
"""


class Change(NamedTuple):
    """What has become of a record; `before` is `after` where nothing has changed."""

    before: Record
    after: Record


class HostRecords:
    """The records.

    directory  that the workers share, or None: they stay within this process
    clock      returns seconds, monotonic and the same for all processes
    """

    def __init__(self, directory: pathlib.Path | None, clock: Callable[[], float]) -> None:
        path = directory / "cooling.sqlite" if directory else pathlib.Path(":memory:")
        self._database = SharedDatabase(
            path, _SCHEMA, clock, functools.partial(count, cooling_errors_total), "cooling store")
        self._word = SharedWord(directory / "cooling" if directory else None)
        self._clock = clock
        self._rests_until = 0.0
        self._read()

    def all(self) -> Mapping[str, Record]:
        """Return the record of each model that has one.

        Cost  0.2 µs; 20 µs and a read after a change
        """
        if self._word.value != self._seen:
            self._read()
        return self._records

    def change(self, model: str, change: Callable[[Record], Record]) -> Change | None:
        """Replace a model's record, whatever other workers do meanwhile.

        change   record -> next record; called again where another worker was faster
        Returns  Change; None if the store failed, or is left alone for having failed
        Cost     20 µs, or 5 ms while the file is locked; no switch; nothing if nothing changes
        """
        for _ in range(_MOST_TRIES):
            before = self.all().get(model, HEALTHY)
            after = change(before)
            if after == before:
                return Change(before, after)
            if len(model) > _LONGEST_NAME:
                return None
            rows = self._write(_PUT, model, *after, self._versions.get(model, 0))
            if rows is None:
                return None
            if rows:
                self._word.change()
                return Change(before, after)
            self._read()
        return None

    def keep(self) -> None:
        """Look after the files, and forget what is old; a worker calls this every second.

        Cost  20 µs, 1 ms if 500 models are forgotten, or 5 ms while the file is locked; no switch
        """
        self._database.keep()
        self._word.keep()
        self._read()
        now = self._clock()
        old = [(model, self._versions[model]) for model, record in self._records.items()
               if forgotten_at(record) <= now]
        if old and self._write(_FORGET, json.dumps(old)) is not None:
            self._word.change()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write(self, statement: str, *values: object) -> list[Any] | None:
        """Change rows, see SharedDatabase.write; None too if the store is left alone."""
        if self._clock() < self._rests_until:
            return None
        rows = self._database.write(statement, *values)
        if rows is None:
            self._rests_until = self._clock() + _REST_S
        return rows

    def _read(self) -> None:
        # The word first: what changes during the read is read again.
        self._seen = self._word.value
        rows = self._database.read(_ALL)
        self._records = {model: Record(*values) for model, _, *values in rows}
        self._versions = {model: version for model, version, *_ in rows}

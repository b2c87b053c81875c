"""A SQLite file that all processes of one host read and write, without ever raising.

The file is in shared memory: nothing is synced, and it ends with the router. It keeps a write-ahead
log, so readers and one writer do not block each other. SQLite waits for locks with the whole event
loop standing still, so the wait is a few milliseconds. An error costs what one statement would have
read or written; it is counted, and logged once per change of state. A damaged file is replaced.

Source: specs/005 R7, R8, specs/007 R14, R40; https://sqlite.org/wal.html,
https://sqlite.org/mmap.html.
"""

import contextlib
import logging
import math
import os
import pathlib
import sqlite3
from collections.abc import Callable
from typing import Any

from app.logs import StateChange
from app.shared.directory import is_private

logger = logging.getLogger(__name__)

# Workers that start together wait for each other while one of them makes the tables.
_OPEN_TIMEOUT_S = 1.0
_BUSY_TIMEOUT_MS = 5
_REOPEN_AFTER_S = 10.0
# A write copies whole pages into the log: small pages are cheap.
_PAGE_BYTES = 1024
# A read of a mapped page costs no system call. This is address space, not memory.
_MAX_MAPPED_BYTES = 1 << 30
_IN_MEMORY = ":memory:"
# A whole file gives no reason for these. SQLITE_ERROR is a missing table; the statements are right.
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class SharedDatabase:
    """One connection to the file.

    path      of the file, which is made if it is missing; `:memory:` stays within this process
    schema    SQL script that makes the missing tables; runs whenever the file is opened
    clock     returns seconds, monotonic
    on_error  called for each failure to open, read or write
    message   of the log lines; they have `fields` too, and `kind`: open, read or write

    A file that cannot be opened is tried again at the first statement 10 s later. A damaged one is
    removed, and made anew at the next statement, but not twice in 10 s; what was in it is lost.
    """

    def __init__(self, path: pathlib.Path, schema: str, clock: Callable[[], float],
                 on_error: Callable[[], None], message: str, **fields: str) -> None:
        self._path = path
        self._schema = schema
        self._clock = clock
        self._on_error = on_error
        # One state for each kind: on a full disk writes fail while reads work.
        self._opening, self._reading, self._writing = (
            StateChange(logger, message, kind=kind, **fields) for kind in ("open", "read", "write"))
        self._connection: sqlite3.Connection | None = None
        # Of the file that was opened; None for one that stays in memory.
        self._identity: tuple[int, int] | None = None
        self._reopen_at = 0.0
        self._reopen()

    def read(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of a query; none if it fails. Cost: no switch; microseconds, or 5 ms."""
        return self._run(self._reading, statement, values) or []

    def write(self, statement: str, *values: object) -> list[Any] | None:
        """Change rows and return those of a RETURNING clause; None: it failed, nothing changed.

        Cost: no switch; microseconds, or 5 ms while another process writes.
        """
        return self._run(self._writing, statement, values)

    def keep(self) -> None:
        """Open the file anew if somebody has removed it; what was in it is lost. Cost: 2 µs."""
        if self._connection is None or self._identity is None:
            return
        if self._identity != _identity(self._path):
            self._connection.close()
            self._connection, self._reopen_at = None, -math.inf
            self._reopen()

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def _run(self, state: StateChange, statement: str,
             values: tuple[object, ...]) -> list[Any] | None:
        connection = self._connection or self._reopen()
        if connection is None:
            return None
        try:
            rows = connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._failed(state, error)
            return None
        state.working()
        return rows

    def _reopen(self) -> sqlite3.Connection | None:
        now = self._clock()
        if now >= self._reopen_at:
            self._reopen_at = now + _REOPEN_AFTER_S
            try:
                self._connection = self._open()
            except sqlite3.Error as error:
                self._failed(self._opening, error)
            else:
                self._opening.working()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        if str(self._path) != _IN_MEMORY and not is_private(self._path.parent):
            raise sqlite3.OperationalError("another user's directory, or none")
        self._identity = _identity(self._path)
        connection = sqlite3.connect(self._path, timeout=_OPEN_TIMEOUT_S, isolation_level=None)
        try:
            for pragma in (f"page_size = {_PAGE_BYTES}", f"max_page_count = {self._max_pages()}",
                           f"mmap_size = {_MAX_MAPPED_BYTES}", "journal_mode = WAL",
                           "synchronous = OFF"):
                connection.execute("PRAGMA " + pragma)
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema}; COMMIT")
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
            self._identity = _identity(self._path)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _max_pages(self) -> int:
        # Half of the room there is, because the metrics' files share it and cannot do without.
        try:
            room, size = os.statvfs(self._path.parent), self._path.stat().st_size
        except OSError:
            # Opening has made the file, unless it stays in memory.
            return _MAX_MAPPED_BYTES // _PAGE_BYTES
        return (room.f_bavail * room.f_frsize + size) // 2 // _PAGE_BYTES

    def _failed(self, state: StateChange, error: sqlite3.Error) -> None:
        self._on_error()
        state.failing(type(error).__name__)
        # Only errors of SQLite itself have a code; the low byte says what it is.
        if getattr(error, "sqlite_errorcode", 0) & 0xff in _DAMAGE:
            self._remove()

    def _remove(self) -> None:
        """Remove the file, unless another worker has put a new one in its place."""
        self.close()
        self._connection = None
        if self._identity is not None and self._identity == _identity(self._path):
            for end in ("-wal", "-shm", ""):
                with contextlib.suppress(OSError):
                    os.unlink(f"{self._path}{end}")


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

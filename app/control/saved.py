"""A feed's last good document in a file, which workers share and a restart keeps.

The file holds one header line of JSON, then the document as it was fetched. A rename replaces the
file, so a reader sees the old document or the new one. The header names the feed, the URL and a
checksum. A file that does not match its header is ignored.

Source: specs/003 R11, R12.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable

from app.files import open_regular, read_regular
from app.logs import StateChange

logger = logging.getLogger(__name__)

_FORMAT = "chutes-router feed 1"
_MAX_HEADER_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Saved:
    """A document, and how long ago it was fetched, in seconds."""

    document: bytes
    age_s: float


class SavedFeed:
    """The file of one feed.

    directory   where the file is; it exists
    name        of the feed
    url         of the feed; a document fetched from another URL is ignored
    max_bytes   a larger document is not written
    usable      says whether the directory may be read and written now
    wall_clock  returns seconds since the epoch; only the wall clock outlives a restart
    """

    def __init__(self, directory: pathlib.Path, name: str, url: str, max_bytes: int,
                 wall_clock: Callable[[], float] = time.time,
                 usable: Callable[[], bool] = lambda: True) -> None:
        self._path = directory / f"{name}.feed"
        self._name = name
        self._source = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._usable = usable
        self._seen: tuple[int, int] | None = None
        self._writing = StateChange(logger, "saving feed", feed=name)

    def read_new(self) -> Saved | None:
        """Return the document if the file has changed since the last call, else None.

        Cost: one stat(), and reading a changed file; no switch.
        """
        try:
            status = self._path.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            if identity == self._seen or not self._usable():
                return None
            self._seen = identity
            return self._parse(read_regular(self._path, self._max_bytes + _MAX_HEADER_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            # The file may hold anything, and reading it must not keep a worker from fetching.
            logger.warning("saved feed ignored", extra={
                "feed": self._name, "why": type(error).__name__})
            return None

    def _parse(self, data: bytes) -> Saved:
        line, _, document = data.partition(b"\n")
        header = json.loads(line[:_MAX_HEADER_BYTES])
        fetched_at = header["fetched_at"]
        if header != self._header(document, fetched_at) or not math.isfinite(fetched_at):
            raise ValueError("the header does not match")
        # The wall clock may have been set back: a document from the future counts as new.
        return Saved(document, max(0.0, self._wall_clock() - fetched_at))

    def _header(self, document: bytes, fetched_at: float) -> dict[str, object]:
        return {"format": _FORMAT, "feed": self._name, "source": self._source,
                "bytes": len(document), "crc32": zlib.crc32(document), "fetched_at": fetched_at}

    def write(self, document: bytes, age_s: float) -> None:
        """Replace the file with a document that was fetched so long ago. A failure is only logged.

        The file is not synced, because a sync would block the event loop. A file that a power
        failure damages does not match its header.
        """
        if len(document) > self._max_bytes or not self._usable():
            return
        header = json.dumps(self._header(document, self._wall_clock() - age_s))
        unfinished = self._path.with_suffix(f".{os.urandom(8).hex()}")
        try:
            self._remove_unfinished()
            with unfinished.open("xb") as file:
                # Held while the file is unfinished: the kernel frees it if this process is killed.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(header.encode() + b"\n")
                file.write(document)
                file.flush()
                os.replace(unfinished, self._path)
            status = self._path.stat()
            self._seen = (status.st_ino, status.st_mtime_ns)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            self._writing.failing(type(error).__name__)
        else:
            self._writing.working()

    def _remove_unfinished(self) -> None:
        """Remove the files of writers that were killed: nobody holds the lock of those."""
        for path in self._path.parent.glob(f"{self._name}.{'[0-9a-f]' * 16}"):
            with contextlib.suppress(OSError), open_regular(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

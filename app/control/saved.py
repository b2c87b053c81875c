"""A feed's last good document in a file: shared by the workers, and kept over a restart.

The file is one line of JSON about the document, then the document as it was fetched. It is
replaced whole, so that a reader sees the old one or the new one, and a file that is not what it
says it is (cut off, foreign, of another feed) is as good as none.

Source: specs/003 R11, R12.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import stat
import zlib
from collections.abc import Callable

logger = logging.getLogger(__name__)

_FORMAT = "chutes-router feed 1"
_LONGEST_HEAD = 1024


@dataclasses.dataclass(frozen=True)
class Saved:
    """A document and when it was fetched, in seconds since the epoch."""

    document: bytes
    fetched_at: float


class SavedFeed:
    """The file of one feed.

    path        of the file; its directory exists
    name        of the feed
    url         where it is fetched: a document of another backend is none of ours
    most_bytes  a larger document is not written
    wall_clock  returns seconds since the epoch: the only clock that outlives a restart
    """

    def __init__(self, path: pathlib.Path, name: str, url: str, most_bytes: int,
                 wall_clock: Callable[[], float]) -> None:
        self._path = path
        self._name = name
        self._source = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
        self._most_bytes = most_bytes
        self._wall_clock = wall_clock
        self._seen: tuple[int, int] | None = None
        self._failing = False

    def age_s(self, saved: Saved) -> float:
        """Return how old a document is; one from the future counts as new."""
        return max(0.0, self._wall_clock() - saved.fetched_at)

    def read_new(self) -> Saved | None:
        """Return the document if the file has changed since the last call, else None.

        Cost: a system call, or reading the file; no switch.
        """
        try:
            status = self._path.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            if identity == self._seen or not stat.S_ISREG(status.st_mode):
                return None
            self._seen = identity
            if status.st_size > self._most_bytes + _LONGEST_HEAD:
                raise ValueError("too large")
            return self._parse(self._path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError,
                RecursionError) as error:
            logger.warning("saved feed ignored", extra={
                "feed": self._name, "why": type(error).__name__})
            return None

    def _parse(self, data: bytes) -> Saved:
        head, _, document = data.partition(b"\n")
        about = json.loads(head[:_LONGEST_HEAD])
        fetched_at = float(about.pop("fetched_at"))
        if about != self._about(document) or not math.isfinite(fetched_at):
            raise ValueError("not what it says it is")
        return Saved(document, fetched_at)

    def _about(self, document: bytes) -> dict[str, object]:
        return {"format": _FORMAT, "feed": self._name, "source": self._source,
                "bytes": len(document), "crc32": zlib.crc32(document)}

    def write(self, document: bytes) -> None:
        """Replace the file. A failure is logged once per change of state, and costs nothing else.

        Not synced to disk: that would hold the event loop, and a file lost with the power is
        found out when it is read.
        """
        if len(document) > self._most_bytes:
            return
        about = self._about(document) | {"fetched_at": self._wall_clock()}
        unfinished = self._path.with_suffix(f".{os.urandom(8).hex()}")
        try:
            with unfinished.open("xb") as file:
                file.write(json.dumps(about).encode() + b"\n" + document)
            os.replace(unfinished, self._path)
            status = self._path.stat()
            self._seen = (status.st_ino, status.st_mtime_ns)
            self._say(failing=False, why="")
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            self._say(failing=True, why=type(error).__name__)

    def _say(self, failing: bool, why: str) -> None:
        if failing is not self._failing:
            self._failing = failing
            logger.log(logging.WARNING if failing else logging.INFO, "saving feed",
                       extra={"feed": self._name, "failing": failing, "why": why})

"""A feed's last good document in a file: shared by the workers, and kept over a restart.

The file is one line of JSON about the document, then the document as it was fetched. It is
replaced whole, so that a reader sees the old one or the new one, and a file that is not what it
says it is (cut off, foreign, of another feed) is as good as none.

Source: specs/003 R11, R12.
"""

import dataclasses
import json
import logging
import os
import pathlib
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
    wall_clock  returns seconds since the epoch: the only clock that outlives a restart
    """

    def __init__(self, path: pathlib.Path, name: str, wall_clock: Callable[[], float]) -> None:
        self._path = path
        self._name = name
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
            if identity == self._seen:
                return None
            self._seen = identity
            return self._parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("saved feed ignored", extra={
                "feed": self._name, "why": type(error).__name__})
            return None

    def _parse(self, data: bytes) -> Saved:
        head, _, document = data.partition(b"\n")
        about = json.loads(head[:_LONGEST_HEAD])
        expected = (_FORMAT, self._name, len(document), zlib.crc32(document))
        if (about["format"], about["feed"], about["bytes"], about["crc32"]) != expected:
            raise ValueError("not what it says it is")
        return Saved(document, float(about["fetched_at"]))

    def write(self, document: bytes) -> None:
        """Replace the file. A failure is logged once per change of state, and costs nothing else.

        Not synced to disk: that would hold the event loop, and a file lost with the power is
        found out when it is read.
        """
        about = {"format": _FORMAT, "feed": self._name, "fetched_at": self._wall_clock(),
                 "bytes": len(document), "crc32": zlib.crc32(document)}
        unfinished = self._path.with_suffix(f".{os.getpid()}")
        try:
            unfinished.write_bytes(json.dumps(about).encode() + b"\n" + document)
            os.replace(unfinished, self._path)
            status = self._path.stat()
            self._seen = (status.st_ino, status.st_mtime_ns)
            self._say(failing=False, why="")
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            self._say(failing=True, why=type(error).__name__)

    def _say(self, failing: bool, why: str) -> None:
        if failing is not self._failing:
            self._failing = failing
            logger.log(logging.WARNING if failing else logging.INFO, "saving feed",
                       extra={"feed": self._name, "failing": failing, "why": why})

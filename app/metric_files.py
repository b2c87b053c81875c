"""The files in which workers count, once a worker has gone.

prometheus_client leaves a dead worker's counters in files of its own, and every scrape reads them
all: here they are added to one file for all the dead. The master does it, which must not declare
metrics: its own gauges would count as a worker's.

Source: specs/001 R13.
"""

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Iterator
from typing import IO

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

# The directory of them, within the runtime directory.
METRICS = "metrics"
# No process has this number, which stands in the file's name.
_THE_DEAD = 0
_KINDS = ("counter", "histogram")
# A scrape takes some milliseconds.
_TRIES, _PAUSE_S = 50, 0.01
# Of a file, and of an entry beside its key, padding and all.
_HEAD_BYTES, _ENTRY_BYTES = 8, 32


@contextlib.contextmanager
def held(directory: pathlib.Path, *, exclusively: bool = False) -> Iterator[None]:
    """Keep the files as they are for a scrape, or from scrapes while they change.

    exclusively  the master's way: it is tried for a moment, since a worker may have stopped with
                 the lock, and raises BlockingIOError
    """
    with open(directory / "lock", "a") as lock:
        if exclusively:
            _lock_soon(lock)
        else:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _lock_soon(lock: IO[str]) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_S)
    raise BlockingIOError


def take_over(directory: pathlib.Path, pid: int) -> None:
    """Add a dead worker's counts to those of the dead; its gauges go.

    Raises  OSError without room or lock, and whatever a damaged file makes of it; the files stay
    Cost    I/O: some milliseconds
    """
    with held(directory, exclusively=True):
        mark_process_dead(pid, str(directory))
        for kind in _KINDS:
            left = directory / f"{kind}_{pid}.db"
            if left.exists():
                _add(left, directory / f"{kind}_{_THE_DEAD}.db")


def _add(left: pathlib.Path, total: pathlib.Path) -> None:
    sums: dict[str, float] = {}
    for path in (total, left):
        if path.exists() and path.stat().st_size:
            for key, value, *_ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] = sums.get(key, 0.0) + value
    unfinished = total.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        # The room is taken before it is mapped: to write where there is none ends a process.
        os.posix_fallocate(file.fileno(), 0, _HEAD_BYTES + sum(
            len(key.encode()) + _ENTRY_BYTES for key in sums))
    counts = MmapedDict(str(unfinished))
    for key, value in sums.items():
        counts.write_value(key, value, 0.0)
    counts.close()
    os.replace(unfinished, total)
    left.unlink()

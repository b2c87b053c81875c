"""The files in which prometheus_client keeps this worker's numbers.

A worker's files are named by its slot: a new worker goes on with the counters and histograms of the
dead one whose slot it takes, and nothing has to be added up. Gauges start anew.

prometheus_client maps its files, and makes them sparse. A write to a mapped page for which a full
file system has no room is a SIGBUS. So each page is allocated before it is mapped: without room
that is an OSError, which costs one number. If somebody removes the files, the numbers are still in
memory, and are written to new ones. A damaged file is removed, and its numbers are lost.

Source: specs/001 R13, specs/007 R13, R14, R31.
"""

import logging
import os
import pathlib
from collections.abc import Iterable

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.values import MultiProcessValue

from app.shared.directory import (METRICS, WORKER_BYTES, has_room, join_runtime_directory,
                                  restore_runtime_directory)
from app.shared.slots import Slot, free_slots, take_slot

logger = logging.getLogger(__name__)

# What prometheus_client begins a file with; it doubles the size when it needs more.
_FIRST_BYTES = 64 * 1024
# What a value takes in a file beside its key: length, padding, value and time.
_BESIDE_KEY_BYTES = 4 + 8 + 16


class _AllocatedFile(MmapedDict):
    """A file of numbers with no hole in it."""

    def __init__(self, filename: str) -> None:
        _allocate(filename)
        super().__init__(filename)

    def _init_value(self, key: str) -> None:
        needed, size = self._used + len(key.encode()) + _BESIDE_KEY_BYTES, self._capacity
        while needed > size:
            size *= 2
        if size > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, size)
        super()._init_value(key)

    def content(self) -> bytes:
        """Return what there is of the file, also if it has no name any more."""
        # Not from the mapping: a read behind the end of a file that was cut short is a SIGBUS.
        return os.pread(self._f.fileno(), self._capacity, 0)

    def is_at(self, path: str) -> bool:
        """Say whether the file still has its name."""
        try:
            return os.path.samestat(os.stat(path), self._status())
        except OSError:
            return False

    def is_whole(self) -> bool:
        """Say whether nobody has cut the file short."""
        return self._status().st_size >= self._capacity

    def _status(self) -> os.stat_result:
        return os.fstat(self._f.fileno())


def _allocate(path: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        os.posix_fallocate(descriptor, 0, max(size, _FIRST_BYTES))
    finally:
        os.close(descriptor)


def _remove_damaged(path: str) -> bool:
    """Remove a file that prometheus_client cannot read; say whether there is one that it can."""
    try:
        MultiProcessCollector.merge([path])
    except FileNotFoundError:
        return False
    except Exception as error:
        # Garbage makes the library raise anything.
        if os.path.getsize(path):
            # An empty one is just being made.
            os.unlink(path)
            logger.warning("damaged metrics removed", extra={
                "file": os.path.basename(path), "why": type(error).__name__})
        return False
    return True


class MetricFiles:
    """This process's files, from before the first metric is made.

    directory  that all processes share
    prefixes   of the files that there will be: kinds of metrics, as prometheus_client names them

    Raises  OSError where there is no room or no directory
    """

    def __init__(self, directory: pathlib.Path, prefixes: tuple[str, ...]) -> None:
        self._directory = directory
        self._open: dict[str, _AllocatedFile] = {}
        if restore_runtime_directory(directory):
            join_runtime_directory(directory)
        self._slot = take_slot(directory)
        # What is left there are the gauges of a dead worker.
        mark_process_dead(self._slot.number)
        for prefix in prefixes:
            path = str(self._path(prefix, self._slot))
            _remove_damaged(path)
            _allocate(path)
        setattr(values, "MmapedDict", self._open_file)
        values.ValueClass = MultiProcessValue(process_identifier=lambda: self._slot.number)

    def _path(self, prefix: str, slot: Slot) -> pathlib.Path:
        return self._directory / METRICS / f"{prefix}_{slot.number}.db"

    def _open_file(self, filename: str) -> _AllocatedFile:
        self._open[filename] = file = _AllocatedFile(filename)
        return file

    def keep(self) -> bool:
        """Write all numbers to new files if somebody has removed or damaged this worker's.

        Returns  whether the directory itself was missing too
        Raises   OSError if new files cannot be made; the numbers are kept, and go on, in memory
        Cost     20 µs, no switch

        The files get another slot: that is how prometheus_client knows that it must open them. It
        is one whose files nobody has left there.
        """
        made = restore_runtime_directory(self._directory)
        if self._slot.is_at(self._directory) and all(
                file.is_at(path) and file.is_whole() for path, file in self._open.items()):
            return made
        join_runtime_directory(self._directory)
        slot = take_slot(self._directory, but_not=self._numbers())
        opened = dict[str, _AllocatedFile]()
        for path, file in self._open.items():
            new = self._path(pathlib.Path(path).name.rpartition("_")[0], slot)
            # Renamed: the name may be that of a file which its worker still has mapped.
            unfinished = new.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(file.content())
            if _remove_damaged(str(unfinished)):
                unfinished.replace(new)
            if file.is_at(path):
                # It would be counted twice.
                os.unlink(path)
            # prometheus_client opens it at the next change, which may come after the next move.
            opened[str(new)] = _AllocatedFile(str(new))
        self._open, self._slot = opened, slot
        return made

    def _numbers(self) -> frozenset[int]:
        """Return this worker's slot, and those of the files there are."""
        names = (path.stem.rpartition("_")[2] for path in self._all())
        return frozenset((self._slot.number, *(int(name) for name in names if name.isdecimal())))

    def _all(self) -> Iterable[pathlib.Path]:
        return (self._directory / METRICS).glob("*.db")

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all workers; those of a damaged file are lost.

        Cost  reads all files; some milliseconds, no switch
        """
        paths = list(map(str, self._all()))
        try:
            return MultiProcessCollector.merge(paths)
        except Exception:
            return MultiProcessCollector.merge(list(filter(_remove_damaged, paths)))

    def has_room(self) -> bool:
        """Say whether the files can grow. Cost: 2 µs."""
        return has_room(str(self._directory), WORKER_BYTES)

    def forget_the_dead(self) -> None:
        """Remove the gauges of workers that have ended."""
        for slot in free_slots(self._directory):
            mark_process_dead(slot)

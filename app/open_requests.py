"""How many requests of this host are open on each model, of those that the feed cannot know of.

Each worker counts its own, and publishes the counts in a file that it maps into memory. The file is
the worker's slot (app.shared.slots): the kernel frees the lock on it when the worker ends, however
it ends, and what it counted is then cleared. The others read the files, also mapped, at most every
50 ms. Neither costs a system call.

A file holds 64-bit words: how many models follow, then for each the digest of its id and a count.

Source: specs/003 R48, R62.
"""

import contextlib
import functools
import hashlib
import math
import mmap
import os
import pathlib
from collections.abc import Callable, Mapping

from app.routing.view import View, Views
from app.shared.directory import is_private
from app.shared.slots import Slot, free_slots, slot_paths, take_slot

_MOST_MODELS = 511
_FILE_BYTES = 8 * (1 + 2 * _MOST_MODELS)
# Other workers' counts are read this often at most, seconds.
_READ_EVERY_S = 0.05


class OpenRequest:
    """One request; it is open on one model at a time, from an attempt's beginning on."""

    __slots__ = ("_all", "model", "began")

    def __init__(self, everyone: "OpenRequests") -> None:
        self._all = everyone
        self.model = ""
        self.began = -math.inf

    def begin(self, model: str) -> None:
        """Take note that an attempt begins. Cost: 1 µs."""
        self.end()
        self._all.add(self, model)

    def end(self) -> None:
        """Take note that it is open no longer; a second call does nothing. Cost: 0.5 µs."""
        if self.model:
            self._all.remove(self)


class OpenRequests:
    """Counts this worker's open requests, and adds those of the other workers.

    views      what the feed tells of, and since when
    directory  that the host's workers share; None: this worker counts for itself alone
    clock      returns seconds, monotonic and the same for all workers
    """

    def __init__(self, views: Views, directory: pathlib.Path | None,
                 clock: Callable[[], float]) -> None:
        self._views, self._directory, self._clock = views, directory, clock
        self._view: View | None = None
        self._since = -math.inf
        self._open = set[OpenRequest]()
        self._mine = dict[str, int]()
        self._total = dict[str, int]()
        self._read_at = -math.inf
        self._slot: Slot | None = None
        # What is published: the words, and the place of each model's count in them.
        self._words = _nothing()
        self._places = dict[str, int]()
        self._others = dict[pathlib.Path, _File]()
        self._names = dict[int, str]()
        self.keep()

    def add(self, request: OpenRequest, model: str) -> None:
        """Count a request that begins now on a model."""
        request.model, request.began = model, self._clock()
        self._open.add(request)
        self._count(model, 1)

    def remove(self, request: OpenRequest) -> None:
        """Count a request no longer."""
        self._open.discard(request)
        if request.began > self._since:
            self._count(request.model, -1)
        request.model = ""

    def counts(self) -> Mapping[str, int]:
        """Return model -> requests of the host that began after what the feed tells of.

        Cost  0.3 µs; every 50 ms some ten µs; no I/O
        """
        if self._views.current is not self._view:
            self._begin_anew()
        now = self._clock()
        if now - self._read_at >= _READ_EVERY_S:
            self._read_at = now
            self._total = dict(self._mine)
            for file in self._others.values():
                self._read(file.words)
        return self._total

    def keep(self) -> None:
        """Look after the files: this worker's own, new workers', dead ones'.

        Cost  some system calls, no switch; if it fails this worker counts for itself alone
        """
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._keep_files(self._directory)
        self.counts()

    def _begin_anew(self) -> None:
        """Count again what has begun after the moment that the present view tells of."""
        self._view = self._views.current
        snapshot = self._view.snapshot
        self._since = snapshot.as_of if snapshot is not None else -math.inf
        candidates = snapshot.ranking.candidates if snapshot is not None else ()
        self._names = {_digest(candidate.name): candidate.name for candidate in candidates}
        self._mine, self._total, self._places, self._read_at = {}, {}, {}, -math.inf
        self._words[0] = 0
        for request in self._open:
            if request.began > self._since:
                self._count(request.model, 1)

    def _count(self, model: str, change: int) -> None:
        self._mine[model] = self._mine.get(model, 0) + change
        self._total[model] = self._total.get(model, 0) + change
        place = self._places.get(model) or self._place(model)
        if place:
            self._words[place] = self._mine[model]

    def _place(self, model: str) -> int:
        """Return the place of a model's count, which is made if there is room; else 0."""
        used = self._words[0]
        if used >= _MOST_MODELS:
            return 0
        place = self._places[model] = 2 * used + 2
        self._words[place - 1], self._words[place] = _digest(model), 0
        # Last, so that nobody reads a place that is not made.
        self._words[0] = used + 1
        return place

    def _read(self, words: memoryview) -> None:
        used = min(words[0], _MOST_MODELS)
        listed = words[1:1 + 2 * used].tolist()
        for digest, count in zip(listed[::2], listed[1::2]):
            if count and digest in self._names:
                name = self._names[digest]
                self._total[name] = self._total.get(name, 0) + count

    def _keep_files(self, directory: pathlib.Path) -> None:
        directory.mkdir(0o700, exist_ok=True)
        if not is_private(directory):
            return
        if self._slot is None or not self._slot.is_at(directory):
            slot = take_slot(directory)
            try:
                words = _mapped(slot.descriptor)
            except OSError:
                os.close(slot.descriptor)
                raise
            words[:] = self._words
            self._slot, self._words = slot, words
        paths = slot_paths(directory)
        for number in free_slots(directory):
            # Whoever takes the slot clears it too; until then its worker's requests are over.
            if number in paths:
                _clear(paths[number])
        paths.pop(self._slot.number, None)
        self._others = {path: self._others.get(path) or _File(path) for path in paths.values()}
        for file in self._others.values():
            # One that is gone, or is no file, costs itself.
            with contextlib.suppress(OSError):
                file.follow()


class _File:
    """Another worker's file; nothing is in it as long as that has not made it whole."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self.words = _nothing()

    def follow(self) -> None:
        """Map the file if it is another one than before."""
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            identity = status.st_dev, status.st_ino
            if identity != self._identity and status.st_size >= _FILE_BYTES:
                mapped = mmap.mmap(file.fileno(), _FILE_BYTES, prot=mmap.PROT_READ)
                self.words, self._identity = memoryview(mapped).cast("Q"), identity


def _nothing() -> memoryview:
    return memoryview(bytearray(_FILE_BYTES)).cast("Q")


def _mapped(descriptor: int) -> memoryview:
    """Map a file of counts; without room for it that is an OSError here, and no SIGBUS later."""
    os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    return memoryview(mmap.mmap(descriptor, _FILE_BYTES)).cast("Q")


def _clear(path: pathlib.Path) -> None:
    # The file stays as long as it was: others have it mapped.
    with path.open("r+b") as file:
        file.write(bytes(8))


@functools.lru_cache(maxsize=4096)
def _digest(model: str) -> int:
    return int.from_bytes(hashlib.blake2b(model.encode(), digest_size=8).digest())

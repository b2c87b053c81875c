"""A small number for each worker, which no other living worker has.

Slot N is the file `slot-N` in the runtime directory, and whoever has it holds a lock on that file.
The kernel frees the lock when the worker ends, also after a SIGKILL, and the next worker takes the
slot over with all that is kept under its number. A lock belongs to an open file and not to a
process, so a process finds its own slot taken too.

Source: specs/001 R13.
"""

import dataclasses
import fcntl
import itertools
import os
import pathlib
import re
from collections.abc import Container, Iterator

_PREFIX = "slot-"
_NAME = re.compile("slot-(0|[1-9][0-9]*)")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A slot of this process; `descriptor` holds its lock, and is never closed."""

    number: int
    descriptor: int

    def is_at(self, directory: pathlib.Path) -> bool:
        """Say whether the slot's file is still there; only somebody from outside removes it."""
        try:
            there = os.stat(directory / f"{_PREFIX}{self.number}")
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.descriptor))


def take_slot(directory: pathlib.Path, but_not: Container[int] = ()) -> Slot:
    """Take the lowest free slot for the life of this process; slots count from 0.

    but_not  numbers to pass over
    Cost     two system calls for each slot up to that one, no switch
    """
    for number in itertools.count():
        if number not in but_not:
            descriptor = _lock(directory / f"{_PREFIX}{number}")
            if descriptor is not None:
                return Slot(number, descriptor)
    raise AssertionError("numbers do not end")


def free_slots(directory: pathlib.Path) -> Iterator[int]:
    """Yield each slot that somebody had and nobody has; nobody can take it until the next one.

    Cost: three system calls a slot, no switch.
    """
    for number, path in slot_paths(directory).items():
        try:
            lock = _lock(path, create=False)
        except (FileNotFoundError, IsADirectoryError):
            # It went meanwhile, or somebody from outside made it.
            continue
        if lock is not None:
            try:
                yield number
            finally:
                os.close(lock)


def slot_paths(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the files of all slots that there have been, by number."""
    return {int(path.name.removeprefix(_PREFIX)): path for path in directory.glob(_PREFIX + "*")
            if _NAME.fullmatch(path.name)}


def _lock(path: pathlib.Path, create: bool = True) -> int | None:
    """Lock a file; None if another has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT * create, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor

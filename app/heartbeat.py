"""How the master knows that a worker lives, without counting time in which nothing ran.

A worker touches a file every quarter of a second. The master looks at all of them about once a
second and kills a worker whose file is too old. If the whole service is frozen for a while (a
paused container, a virtual machine on the move), the clock runs on, and after the thaw every file
looks too old. So the time between two looks of the master counts as two seconds at most.

The price: if the master itself gets so little processor time that it looks less often than every
two seconds, it takes longer to replace a worker that hangs.

Source: specs/007 R21.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from gunicorn.workers import base
from gunicorn.workers.workertmp import WorkerTmp

# The master looks once a second, and more often when it has signals to handle.
_LOOK_COUNTS_S = 2.0


class MemoryFile(WorkerTmp):
    """gunicorn's file for a worker to touch, in memory and without a directory.

    Where no file can be made, the master could start no worker, and would end.
    """

    def __init__(self, _: Any) -> None:
        self._tmp = os.fdopen(os.memfd_create("heartbeat"), "w+b", 0)


def touch_in_memory() -> None:
    """Have the master make a MemoryFile for each worker."""
    base.WorkerTmp = MemoryFile


class TouchedFile(Protocol):
    """gunicorn's own heartbeat, gunicorn.workers.workertmp.WorkerTmp."""

    def notify(self) -> None:
        """Touch the file; called by the worker."""

    def last_update(self) -> float:
        """Return when it was touched, seconds on the monotonic clock; called by the master."""

    def fileno(self) -> int:
        """Return the file's descriptor."""

    def close(self) -> None:
        """Close the file."""


class Heartbeat:
    """Stands in for gunicorn's heartbeat of one worker.

    file   gunicorn's own
    clock  returns seconds, monotonic
    """

    def __init__(self, file: TouchedFile, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self.notify, self.fileno, self.close = file.notify, file.fileno, file.close
        self._touched_at, self._silent_s, self._looked_at = -1.0, 0.0, clock()

    def last_update(self) -> float:
        """Return when the worker showed that it lives, as seconds on the monotonic clock."""
        now, touched_at = self._clock(), self._file.last_update()
        if touched_at != self._touched_at:
            self._touched_at, self._silent_s = touched_at, 0.0
        else:
            self._silent_s += min(now - self._looked_at, _LOOK_COUNTS_S)
        self._looked_at = now
        return now - self._silent_s

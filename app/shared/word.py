"""A number that all processes of one host read in memory, to learn that something has changed.

It is a mapped file of eight bytes, so reading it costs no system call. Its page is allocated before
it is mapped: on a full file system the first write would be a SIGBUS otherwise.

Source: specs/003 R40, specs/007 R14.
"""

import contextlib
import mmap
import os
import pathlib
import time

from app.shared.directory import is_private

_BYTES = 8


class SharedWord:
    """The number.

    path  of the file, which is made if it is missing; None stays within this process

    Without the file the number is this process's own until `keep` finds that it can be made.
    """

    def __init__(self, path: pathlib.Path | None) -> None:
        self._path = path
        # Of the file that is mapped; None for a number that stays in memory.
        self._file: os.stat_result | None = None
        self._word = memoryview(bytearray(_BYTES)).cast("Q")
        self.keep()

    @property
    def value(self) -> int:
        """Return the number. Cost: 0.1 µs."""
        return self._word[0]

    def change(self) -> None:
        """Give it a value that it never had. Cost: 0.3 µs.

        Two processes may do so at once. With a counter one of the two changes could be lost.
        """
        self._word[0] = time.monotonic_ns()

    def keep(self) -> None:
        """Map the file if it was made anew, or could not be made before. Cost: 2 µs, no switch."""
        if self._path is not None and not self._is_mapped(self._path):
            with contextlib.suppress(OSError):
                self._map(self._path)

    def _is_mapped(self, path: pathlib.Path) -> bool:
        try:
            return self._file is not None and os.path.samestat(self._file, path.stat())
        except OSError:
            return False

    def _map(self, path: pathlib.Path) -> None:
        if not is_private(path.parent):
            raise PermissionError("another user's directory, or none")
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _BYTES)
            word = memoryview(mmap.mmap(descriptor, _BYTES)).cast("Q")
            self._file, self._word = os.fstat(descriptor), word
        finally:
            os.close(descriptor)

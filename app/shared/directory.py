"""A private directory that the processes of one router share, for as long as it runs.

The master makes the directory before it forks and holds a lock in it. The kernel frees the lock
when the master and all its workers have ended, however they ended. What a killed master left
behind is removed by the next one.

Others can write where the directory is. They may fill that file system, remove the directory, or
take a name before it is used: the directory's name is drawn at random and known to nobody before
the directory has it, and a directory that was removed is made anew by whoever notices first.

gunicorn's configuration file imports this module before gevent has patched anything.

Source: specs/005 R8, specs/001 R13, specs/007 R13, R14.
"""

import contextlib
import fcntl
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator

_PREFIX = "chutes-router-"
_LOCK = "lock"
_SHARED_MEMORY = "/dev/shm"
METRICS = "metrics"
# Twice what a worker writes into the directory when it starts, and what all of them share.
WORKER_BYTES = 512 * 1024
_SHARED_BYTES = 1024 * 1024
# With less room than this in shared memory, the directory is made on disk, if that can be written.
_ENOUGH_ROOM_BYTES = 32 * 1024 * 1024


class NoDirectory(Exception):
    """No place for the directory; the text is a sentence that says where it was looked for."""


def make_runtime_directory(workers: int) -> str:
    """Make the directory, lock it for the life of this process and its children, return its path.

    workers  that will share it

    It is in shared memory if there is any, because its files are written at every request and
    must not cost a disk write. Only this user can read it.

    Raises  NoDirectory
    """
    least_bytes = _SHARED_BYTES + workers * WORKER_BYTES
    for parent in _parents(least_bytes):
        with contextlib.suppress(OSError):
            _remove_abandoned(pathlib.Path(parent))
            return _make(parent)
    places = " and ".join(dict.fromkeys((_SHARED_MEMORY, _temporary() or "a temporary directory")))
    raise NoDirectory(
        f"There is no room for the files that the workers share: looked in {places}, expected "
        f"{least_bytes / 2 ** 20:.1f} MiB that can be written to, there or where TMPDIR says.")


def _parents(least_bytes: int) -> Iterator[str]:
    """Yield the directories to try, best first."""
    wanted = [(_SHARED_MEMORY, _ENOUGH_ROOM_BYTES), (_temporary(), _ENOUGH_ROOM_BYTES),
              (_SHARED_MEMORY, least_bytes), (_temporary(), least_bytes)]
    return (path for path, least in wanted if path and has_room(path, least))


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return ""


def _make(parent: str) -> str:
    # It has another name until it is locked, so that a master that starts at the same moment does
    # not take it for abandoned.
    unlocked = tempfile.mkdtemp(prefix="." + _PREFIX, dir=parent)
    try:
        os.mkdir(os.path.join(unlocked, METRICS), 0o700)
        # Never closed: the kernel frees the lock when the last process that inherited it has ended.
        lock = os.open(os.path.join(unlocked, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = os.path.join(parent, _PREFIX + secrets.token_hex(16))
        os.rename(unlocked, path)
    except OSError:
        shutil.rmtree(unlocked, ignore_errors=True)
        raise
    return path


def restore_runtime_directory(path: pathlib.Path) -> bool:
    """Make the directory anew if somebody has removed it or a part of it.

    Returns  whether it was missing
    Raises   OSError, also if another user's directory has its name now
    Cost     three system calls while it is there, no switch
    """
    made = _make_missing(path)
    _check_private(path)
    return _make_missing(path / METRICS) or made


def _make_missing(path: pathlib.Path) -> bool:
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return False
    return True


def is_private(path: pathlib.Path) -> bool:
    """Say whether a path is a directory of this user and no link to one."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _check_private(path: pathlib.Path) -> None:
    if not is_private(path):
        raise PermissionError("another user's directory, or none")


def join_runtime_directory(path: pathlib.Path) -> None:
    """Hold a lock in a directory that was made anew, for the life of this process.

    Raises  OSError if there is none, or another user's
    """
    _check_private(path)
    descriptor = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        # Shared by all workers; a master that starts meanwhile wants it for itself alone.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # It was there all the time, and the master has it.
        os.close(descriptor)


def has_room(path: str, least_bytes: int) -> bool:
    """Say whether a directory can be written to and `least_bytes` more fit into it."""
    try:
        room = os.statvfs(path)
    except OSError:
        return False
    return os.access(path, os.W_OK) and room.f_bavail * room.f_frsize >= least_bytes


def remove_runtime_directory(path: str) -> None:
    """Remove the directory and everything in it."""
    shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(parent: pathlib.Path) -> None:
    for path in parent.glob(_PREFIX + "*"):
        try:
            if not is_private(path):
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            # It is not one of ours, or was removed just now.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)

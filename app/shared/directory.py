"""A private directory that the processes of one router share, for as long as it runs.

The master makes the directory before it forks and holds a lock in it. The kernel frees the lock
when the master and all its workers have ended, however they ended. What a killed master left
behind is removed by the next one.

gunicorn's configuration file imports this module before gevent has patched anything.

Source: specs/005 R8, specs/001 R13.
"""

import fcntl
import os
import pathlib
import shutil
import tempfile

_PREFIX = "chutes-router-"
_LOCK = "lock"
_SHARED_MEMORY = "/dev/shm"
# A process that writes to a mapped file on a full file system gets a SIGBUS. With less room than
# this in shared memory, the directory is made on disk.
_LEAST_ROOM_BYTES = 32 * 1024 * 1024


def make_runtime_directory() -> str:
    """Make the directory, lock it for the life of this process and its children, return its path.

    It is in shared memory if there is any, because its files are written at every request and
    must not cost a disk write. Only this user can read it.
    """
    parent = _SHARED_MEMORY if has_room(_SHARED_MEMORY) else tempfile.gettempdir()
    _remove_abandoned(pathlib.Path(parent))
    # It has another name until it is locked, so that a master that starts at the same moment does
    # not take it for abandoned.
    unlocked = tempfile.mkdtemp(prefix="." + _PREFIX, dir=parent)
    # Never closed: the kernel frees the lock when the last process that inherited it has ended.
    lock = os.open(os.path.join(unlocked, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = os.path.join(parent, os.path.basename(unlocked)[1:])
    os.rename(unlocked, path)
    return path


def has_room(path: str, least_bytes: int = _LEAST_ROOM_BYTES) -> bool:
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
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            # It belongs to another user, or was removed just now.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)

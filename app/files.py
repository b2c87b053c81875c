"""Files that an operator names, or that others may have put somewhere.

A read of a FIFO waits for a writer, a device may have no end, and to open some devices does
something. So only regular files are opened, and only so much of them is read.

gunicorn's configuration file imports this module before gevent has patched anything.

Source: specs/001 R23.
"""

import errno
import os
import pathlib
import stat
from typing import BinaryIO


def open_regular(path: str | pathlib.Path) -> BinaryIO:
    """Open a regular file for reading; never waits.

    Raises  OSError, also where there is something else
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    # It may have become a FIFO since.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: str | pathlib.Path, most_bytes: int) -> bytes:
    """Return what is in a regular file.

    Raises  OSError, also where there is something else, or more than `most_bytes`
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"Larger than {most_bytes / 2 ** 20:g} MiB")
    return content

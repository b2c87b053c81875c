"""The handler that writes log lines to stdout and never waits for whoever reads them.

Each write wakes the reader, which costs more than the line did, so a worker writes the lines of
one turn of its event loop together. If nobody reads, up to 10,000 lines are kept, older ones are
dropped, and a line says how many. A line that cannot be written is lost and nothing else fails.

Source: specs/001 R6.
"""

import json
import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TextIO

logger = logging.getLogger(__name__)

_MAX_FILE_WRITE_BYTES = 256 * 1024
_MAX_WAITING_LINES = 10_000

# Calls a function later, with the others of this turn of the event loop.
Scheduler = Callable[[Callable[[], None]], None]


class LineHandler(logging.Handler):
    """Writes lines to a stream: at once, or after `write_later` once for each turn."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._write, self._max_write_bytes, self._close = _non_blocking(stream.fileno())
        # The real poll: the master makes the handler before gevent patches the module.
        self._room = select.poll()
        self._room.register(stream.fileno(), select.POLLOUT)
        self._lines: list[bytes] = []
        self._lost = 0
        self._later: Scheduler | None = None
        self._scheduled = False

    def write_later(self, later: Scheduler) -> None:
        """Have `later` call `flush`, in place of writing each line at once.

        Lines that a worker inherited from its master are forgotten: the master writes them.
        """
        self._later = later
        self._lines, self._lost, self._scheduled = [], 0, False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, and write it or schedule its writing."""
        try:
            line = self.format(record)
        except Exception as error:
            line = json.dumps({"level": "ERROR", "logger": record.name, "message":
                               "a line could not be formatted", "error": type(error).__name__})
        self._lines.append(line.encode(errors="replace") + b"\n")
        if self._later is None:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._later(self.flush)

    def flush(self) -> None:
        """Write the waiting lines as far as there is room; logging also calls this at exit.

        Cost: system calls, no switch.
        """
        self._scheduled, lines, taken = False, self._lines, 0
        # A line that is logged meanwhile goes into the new list.
        self._lines = []
        try:
            while lines and self._room.poll(0):
                count = _fitting(lines, self._max_write_bytes)
                together = b"".join(lines[:count])
                taken = self._write(together)
                lines[:count] = [together[taken:]] if taken < len(together) else []
        except BlockingIOError:
            # Between poll and write another process filled the pipe.
            pass
        except OSError:
            self._lost, lines, taken = self._lost + len(lines), [], 0
        self._lines = lines[-_MAX_WAITING_LINES:]
        self._lost += len(lines) - len(self._lines)
        if self._lost and taken and not self._lines:
            lost, self._lost = self._lost, 0
            logger.warning("lines lost", extra={"lines": lost})

    def close(self) -> None:
        """Close what was opened for the stream; the stream itself stays open."""
        # Only once: another file may have the descriptor's number by then.
        close, self._close = self._close, _nothing
        close()
        super().close()


def _fitting(lines: list[bytes], max_bytes: int) -> int:
    """Return how many of the lines fit into one write of `max_bytes`; at least 1."""
    size = count = 0
    for line in lines:
        size += len(line)
        if count and size > max_bytes:
            break
        count += 1
    return count


def _non_blocking(
        descriptor: int) -> tuple[Callable[[bytes], int], int, Callable[[], None]]:
    """Return how to write to a descriptor without blocking.

    Returns  a function that writes and returns the number of bytes taken; how many bytes one
             write may have, so that lines of several processes do not mix; what closes it
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(descriptor))
        return lambda data: peer.send(data, socket.MSG_DONTWAIT), select.PIPE_BUF, peer.close
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        return lambda data: os.write(descriptor, data), _MAX_FILE_WRITE_BYTES, _nothing
    try:
        # Opened anew: O_NONBLOCK set on the inherited descriptor would hold for every process
        # that shares it.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        # The pipe belongs to another user. poll() before each write has to do.
        return lambda data: os.write(descriptor, data), select.PIPE_BUF, _nothing
    return lambda data: os.write(own, data), select.PIPE_BUF, lambda: os.close(own)


def _nothing() -> None:
    pass


def write_lines_later(later: Scheduler) -> None:
    """Have this process write its lines by way of `later`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            handler.write_later(later)


def write_waiting_lines() -> None:
    """Write the lines for which there was no room before; a worker calls this at every tick."""
    for handler in logging.getLogger().handlers:
        handler.flush()

"""Log lines as JSON objects on stdout, from the app and from gunicorn alike.

gunicorn's own debug lines carry raw bytes of broken requests, urllib3's name hosts and paths;
neither is ever switched on, whatever LOG_LEVEL says.

Source: specs/001 R6, R7.
"""

import json
import logging
import os
import select
import socket
import stat
import traceback
from collections.abc import Callable
from typing import Any, TextIO

# What the lines do not show need not be looked for; the logging HOWTO's own advice.
logging.logThreads = logging.logMultiprocessing = False
logging._srcfile = None

logger = logging.getLogger(__name__)

_A_LOT = 256 * 1024
# Lines that wait for whoever reads them; beyond that the oldest are lost.
_MOST_WAITING = 10_000


class LineHandler(logging.Handler):
    """Writes lines to a stream, in a worker those of one turn of the event loop together.

    A write wakes up whoever reads, which costs more than the line did. Whoever has stopped reading
    is not waited for: the lines are, up to a number, and how many were lost is said afterwards. A
    line that cannot be written is lost; that is no reason for anything else to fail.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._write, self._most_at_once, self._close = _without_waiting(stream.fileno())
        # Made in the master, before gevent takes its place.
        self._room = select.poll()
        self._room.register(stream.fileno(), select.POLLOUT)
        self._lines: list[bytes] = []
        self._lost = 0
        self._later: Callable[[Callable[[], None]], None] | None = None
        self._due = False

    def write_later(self, later: Callable[[Callable[[], None]], None]) -> None:
        """Have `later` call what writes, in place of writing at once."""
        self._later = later
        # What waits here is the master's, who writes it.
        self._lines, self._lost, self._due = [], 0, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, now or with others."""
        try:
            line = self.format(record)
        except Exception as error:
            line = json.dumps({"level": "ERROR", "logger": record.name, "message":
                               "a line could not be formatted", "error": type(error).__name__})
        self._lines.append(line.encode(errors="replace") + b"\n")
        if self._later is None:
            self.flush()
        elif not self._due:
            self._due = True
            self._later(self.flush)

    def flush(self) -> None:
        """Write what has not been written, as far as there is room; also called at exit."""
        self._due, lines, taken = False, self._lines, 0
        self._lines = []
        try:
            while lines and self._room.poll(0):
                count = _fitting(lines, self._most_at_once)
                together = b"".join(lines[:count])
                taken = self._write(together)
                lines[:count] = [together[taken:]] if taken < len(together) else []
        except BlockingIOError:
            # Another process took the room.
            pass
        except OSError:
            self._lost, lines, taken = self._lost + len(lines), [], 0
        self._lines = lines[-_MOST_WAITING:]
        self._lost += len(lines) - len(self._lines)
        if self._lost and taken and not self._lines:
            lost, self._lost = self._lost, 0
            logger.warning("lines lost", extra={"lines": lost})

    def close(self) -> None:
        """Close what was opened for the stream, which stays open itself."""
        # Once: another file may have the number by then.
        close, self._close = self._close, _nothing
        close()
        super().close()


def _fitting(lines: list[bytes], most: int) -> int:
    """Return how many of the lines go into one write of so many bytes; at least one."""
    size = count = 0
    for line in lines:
        size += len(line)
        if count and size > most:
            break
        count += 1
    return count


def _without_waiting(
        descriptor: int) -> tuple[Callable[[bytes], int], int, Callable[[], None]]:
    """Return what writes to a descriptor without waiting.

    Returns  write, the number of bytes that stay whole in one write, and what closes it
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(descriptor))
        return lambda data: peer.send(data, socket.MSG_DONTWAIT), select.PIPE_BUF, peer.close
    if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
        return lambda data: os.write(descriptor, data), _A_LOT, _nothing
    try:
        # Opened anew, since not to wait is a property that others of the same pipe would share.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        # Another user's: whether there is room must do.
        return lambda data: os.write(descriptor, data), select.PIPE_BUF, _nothing
    return lambda data: os.write(own, data), select.PIPE_BUF, lambda: os.close(own)


def _nothing() -> None:
    pass


def write_lines_later(later: Callable[[Callable[[], None]], None]) -> None:
    """Have this process write its lines by way of `later`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            handler.write_later(later)


def write_waiting_lines() -> None:
    """Write what has waited for somebody to read it; to be called now and then."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def logging_config(level: str) -> dict[str, Any]:
    """Return the logging configuration of a process, as logging.config.dictConfig takes it.

    level  the least severe level of the app's own lines
    """
    libraries_level = max(level, "info", key=_SEVERITY.index)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {
            "()": "pythonjsonlogger.msgspec.MsgspecFormatter",
            "fmt": "%(levelname)s %(name)s %(process)d %(message)s", "timestamp": "time",
            "rename_fields": {"levelname": "level", "name": "logger", "process": "pid"},
        }},
        "handlers": {"stdout": {
            "()": LineHandler, "stream": "ext://sys.stdout", "formatter": "json"}},
        "root": {"level": libraries_level.upper(), "handlers": ["stdout"]},
        "loggers": {
            "app": {"level": level.upper()},
            "gunicorn.error": {"level": libraries_level.upper(), "propagate": True},
            # Its warnings quote header lines and addresses.
            "urllib3": {"level": "CRITICAL"},
        },
    }


_MOST_PLACES = 12
_SEVERITY = ("debug", "info", "warning", "error", "critical")


def places(error: BaseException) -> list[str]:
    """Return where an exception came from, innermost last: file, line and function.

    The exception's own text is left out: it could quote a request.
    """
    frames = traceback.extract_tb(error.__traceback__, limit=-_MOST_PLACES)
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class StateChange:
    """Logs when something starts to fail and when it works again, and nothing in between.

    logger           of the module that watches
    message          of both lines
    working_message  of the line that says it works again, where it differs
    fields           of both lines, beside `failing` and `why`

    It starts as working: the first success is not logged.
    """

    def __init__(self, logger: logging.Logger, message: str, working_message: str = "",
                 **fields: object) -> None:
        self._logger = logger
        self._messages = {True: message, False: working_message or message}
        self._fields = fields
        self._failing = False

    def failing(self, why: str) -> None:
        """Log a warning if it worked until now; `why` must be safe to log."""
        self._change(True, logging.WARNING, why)

    def working(self) -> None:
        """Log at info level if it failed until now."""
        self._change(False, logging.INFO, "")

    def _change(self, failing: bool, level: int, why: str) -> None:
        if failing is not self._failing:
            self._failing = failing
            self._logger.log(level, self._messages[failing],
                             extra=self._fields | {"failing": failing, "why": why})

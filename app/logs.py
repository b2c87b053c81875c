"""Log lines as JSON objects on stdout, from the app and from gunicorn alike.

gunicorn's own debug lines carry raw bytes of broken requests, urllib3's name hosts and paths;
neither is ever switched on, whatever LOG_LEVEL says.

Source: specs/001 R6, R7.
"""

import contextlib
import json
import logging
import os
import select
import stat
import traceback
from collections.abc import Callable
from typing import Any, TextIO

# What the lines do not show need not be looked for; the logging HOWTO's own advice.
logging.logThreads = logging.logMultiprocessing = False
logging._srcfile = None


_A_LOT = 256 * 1024


class LineHandler(logging.Handler):
    """Writes lines to a stream, in a worker those of one turn of the event loop together.

    A write wakes up whoever reads, which costs more than the line did. A line that cannot be
    written is lost; that is no reason for anything else to fail.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._descriptor = stream.fileno()
        # No other process writes into the middle of so much of a pipe, or of any file.
        pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        self._most_at_once = select.PIPE_BUF if pipe else _A_LOT
        self._lines: list[bytes] = []
        self._later: Callable[[Callable[[], None]], None] | None = None

    def createLock(self) -> None:
        """Make no lock: only one thread logs."""
        self.lock = None

    def write_later(self, later: Callable[[Callable[[], None]], None]) -> None:
        """Have `later` call what writes, in place of writing at once."""
        self._later = later

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
        elif len(self._lines) == 1:
            self._later(self.flush)

    def flush(self) -> None:
        """Write what has not been written; also called at exit."""
        lines, self._lines = self._lines, []
        with contextlib.suppress(OSError):
            while lines:
                together = lines.pop(0)
                while lines and len(together) + len(lines[0]) <= self._most_at_once:
                    together += lines.pop(0)
                os.write(self._descriptor, together)


def write_lines_later(later: Callable[[Callable[[], None]], None]) -> None:
    """Have this process write its lines by way of `later`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineHandler):
            handler.write_later(later)


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

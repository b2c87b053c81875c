"""Log lines as JSON objects on stdout, from the app and from gunicorn alike.

The debug lines of gunicorn quote the bytes of broken requests, and those of urllib3 name hosts
and paths. Neither is ever logged, whatever LOG_LEVEL says.

Source: specs/001 R6, R7.
"""

import datetime
import logging
import traceback
from typing import Any

import msgspec

from app.log_writer import LineHandler

# No line shows a thread, a process name or its place in the code: the logging HOWTO's advice is
# not to look them up then.
logging.logThreads = logging.logMultiprocessing = False
logging._srcfile = None

# What every record has; the rest are the fields of its line.
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_SEVERITY = ("debug", "info", "warning", "error", "critical")
_MAX_PLACES = 12


class JsonFormatter(logging.Formatter):
    """Makes a line of a record: a JSON object with the record's own fields and those of `extra`.

    A value that JSON has no form for is shown by its text; a record's stack is not shown.

    The library for this, python-json-logger, takes twice as long: 7 µs more of each request.
    """

    _encode = msgspec.json.Encoder(enc_hook=str).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the line.

        Raises  UnicodeEncodeError for a lone surrogate, whatever the text of a value raises
        Cost    5 µs
        """
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name,
                                "pid": record.process, "message": record.getMessage()}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items()
                 if name not in _OF_EVERY_RECORD}
        line["time"] = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        return self._encode(line).decode()


def logging_config(level: str) -> dict[str, Any]:
    """Return the logging configuration of a process, as logging.config.dictConfig takes it.

    level  the least severe level of the app's own lines: one of debug to critical
    """
    libraries_level = max(level, "info", key=_SEVERITY.index)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stdout": {
            "()": LineHandler, "stream": "ext://sys.stdout", "formatter": "json"}},
        "root": {"level": libraries_level.upper(), "handlers": ["stdout"]},
        "loggers": {
            "app": {"level": level.upper()},
            "gunicorn.error": {"level": libraries_level.upper(), "propagate": True},
            # Warnings of urllib3 quote header lines and addresses.
            "urllib3": {"level": "CRITICAL"},
        },
    }


def places(error: BaseException) -> list[str]:
    """Return the innermost 12 places of a traceback, innermost last: file, line and function.

    The exception's text is left out, because it could quote a request.
    """
    frames = traceback.extract_tb(error.__traceback__, limit=-_MAX_PLACES)
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

"""Log lines as JSON objects on stdout, from the app and from gunicorn alike.

gunicorn's own debug lines carry raw bytes of broken requests, urllib3's name hosts and paths;
neither is ever switched on, whatever LOG_LEVEL says.

Source: specs/001 R6, R7.
"""

import traceback
from typing import Any


def logging_config(level: str) -> dict[str, Any]:
    """Return the logging configuration of a process, as logging.config.dictConfig takes it.

    level  the least severe level of the app's own lines
    """
    libraries_level = max(level, "info", key=_SEVERITY.index)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger",
                              "process": "pid"},
        }},
        "handlers": {"stdout": {
            "class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
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

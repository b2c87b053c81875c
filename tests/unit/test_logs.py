"""What the app logs by itself."""

import json
import logging

import pytest

from app.logs import JsonFormatter, StateChange

logger = logging.getLogger("app.test")


@pytest.mark.parametrize("working_message", ["", "store is back"])
def test_a_state_is_logged_when_it_changes_and_only_then(caplog, working_message):
    """001-R6"""
    caplog.set_level(logging.INFO)
    state = StateChange(logger, "store", working_message, kind="read")
    for succeeds in (True, False, False, True, True, False):
        state.working() if succeeds else state.failing("TimeoutError")
    works = ("INFO", working_message or "store", "read", False, "")
    fails = ("WARNING", "store", "read", True, "TimeoutError")
    assert [(line.levelname, line.message, line.kind, line.failing, line.why)
            for line in caplog.records] == [fails, works, fails]


def lines_of(level, message, *values, **options):
    """Return the fields of the line that a call of a logger makes."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(JsonFormatter().format(record)))
    logger.addHandler(handler)
    try:
        logger.log(level, message, *values, **options)
    finally:
        logger.removeHandler(handler)
    return lines


def test_a_line_has_its_records_fields_and_those_it_was_given_and_no_other():
    """001-R6"""
    [line] = lines_of(logging.ERROR, "took %d", 3, extra={
        "none": None, "listed": [{"ms": 1.5}], "odd": ValueError("x")})
    assert line.pop("time").endswith("Z")
    assert isinstance(line.pop("pid"), int)
    assert line == {"level": "ERROR", "logger": "app.test", "message": "took 3",
                    "none": None, "listed": [{"ms": 1.5}], "odd": "x"}


def test_a_line_shows_the_traceback_that_its_caller_asked_for():
    """001-R6"""
    try:
        raise ValueError
    except ValueError:
        [line] = lines_of(logging.ERROR, "failed", exc_info=True)
    assert line["exc_info"].endswith("ValueError")
    assert "exc_text" not in line

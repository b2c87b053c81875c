"""What the app logs by itself."""

import logging

import pytest

from app.logs import StateChange

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

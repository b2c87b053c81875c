"""How an answer came about, as its header fields and its log line tell it."""

import pytest

from app.routing.account import Account
from app.routing.decision import Decision, Mode, Skipped
from app.routing.outcomes import Attempt, Failure

PREFIX = "x-chutes-autopilot-"


def account(decision, *happened, is_kept=True, max_attempts=8):
    """Return the account after a choice was passed over (a name) or tried (name, failure)."""
    told = Account(decision, is_kept, max_attempts, 0.0, lambda: 0.0)
    for each in happened:
        if isinstance(each, str):
            told.passed_over(each, "full")
        else:
            model, failure = each
            blame = failure.blame if failure else None
            told.attempted(Attempt(model, failure, blame, None, "", 1.0))
    return told


BUSY, LOST, FULL = Failure.UNAVAILABLE, Failure.CONNECTION_LOST, Failure.AT_CAPACITY


def test_the_model_that_answers_is_not_named_among_what_was_skipped():
    """002-R52"""
    decision = Decision(Mode.ALIAS, ("next", "best"), "miss",
                        (Skipped("best", "full"), Skipped("gone", "unknown_model")))
    told = dict(account(decision, ("next", BUSY), ("best", None)).fields())
    assert told[PREFIX + "selected"] == "best"
    assert told[PREFIX + "skipped"] == "gone;unknown_model, next;upstream_503"


@pytest.mark.parametrize("decided, happened, sticky", [
    ("miss", [("a", None)], "miss"), ("miss", [("a", BUSY), ("b", None)], "miss"),
    ("ignored", [("a", BUSY), ("b", BUSY)], "ignored"), ("hit", [("a", None)], "hit"),
    ("hit", [("a", BUSY)], "moved"), ("hit", [("a", BUSY), ("b", None)], "moved"),
    ("hit", [("a", LOST), ("b", None)], "moved"), ("hit", [("a", FULL), ("b", None)], "moved"),
    ("hit", ["a", ("b", None)], "ignored"), ("hit", ["a", ("b", BUSY)], "ignored"),
    ("hit", [], "ignored")])
def test_what_became_of_the_sticky_choice(decided, happened, sticky):
    """002-R67, 005-R5"""
    decision = Decision(Mode.ALIAS, ("a", "b"), decided)
    told = account(decision, *happened)
    assert told.sticky == sticky
    assert dict(told.fields()).get(PREFIX + "sticky", sticky) == sticky
    assert account(decision, *happened, is_kept=False).sticky == ""


@pytest.mark.parametrize("candidates, happened, max_attempts, tried", [
    ("ab", [("a", BUSY)], 8, True), ("ab", [("a", BUSY), ("b", BUSY)], 8, True),
    ("ab", [("a", BUSY), ("b", None)], 8, True), ("abc", ["a", ("b", BUSY)], 8, True),
    ("a", [("a", BUSY)], 8, False), ("ab", ["a", ("b", BUSY)], 8, False),
    ("ab", [("a", None)], 8, False), ("ab", [], 8, False), ("ab", [("a", BUSY)], 1, False)],
    ids=["denied", "in vain", "with success", "denied behind one that is full", "a single model",
         "the other was full", "no failure", "no attempt", "failover is off"])
def test_failover_counts_as_tried_also_where_the_next_attempt_was_denied(
        candidates, happened, max_attempts, tried):
    """002-R66"""
    decision = Decision(Mode.LIST, tuple(candidates), "miss")
    assert account(decision, *happened, max_attempts=max_attempts).failover_tried is tried

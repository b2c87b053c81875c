"""What the attempts of one request do to the client's sticky choice."""

import dataclasses

import pytest

from app.routing.client_key import ClientKeys
from app.routing.decision import Caller
from app.routing.outcomes import Attempt, Blame, Failure
from app.sticky.session import Stickiness
from app.sticky.store import StickyChoice


@dataclasses.dataclass
class Store:
    """Has one choice for every client; remembers the calls."""

    choice: StickyChoice
    calls: list = dataclasses.field(default_factory=list)

    def get(self, client_key):
        self.calls.append(("get", client_key))
        return self.choice

    def put(self, client_key, model, choice, by_list=False):
        self.calls.append(("put", client_key, model) + ("by a list",) * by_list)
        assert choice is self.choice

    def discard(self, client_key, choice):
        self.calls.append(("discard", client_key, choice.model))
        assert choice is self.choice


def ended(model, failure=None, status=None):
    return Attempt(model, failure, failure.blame if failure else Blame.NOBODY, status, "", 1.0)


FAILED_A = ended("a", Failure.HEADER_TIMEOUT)


@pytest.mark.parametrize("chosen, attempts, calls", [
    ("a", [ended("a", status=200)], [("put", "a")]),
    (None, [ended("a", status=204)], [("put", "a")]),
    ("a", [FAILED_A, ended("b", status=200)], [("discard", "a"), ("put", "b")]),
    ("a", [FAILED_A], [("discard", "a")]),
    ("a", [ended("a", Failure.UNAVAILABLE, 503)], [("discard", "a")]),
    ("b", [FAILED_A, ended("b", status=299)], [("put", "b")]),
    (None, [FAILED_A], []),
    ("a", [ended("a", status=429)], []),
    ("a", [ended("a", status=300)], []),
    ("a", [ended("a")], []),
    ("a", [ended("a", Failure.UNREACHABLE)], []),
    ("a", [ended("a", Failure.CONNECTION_LOST), ended("b", status=200)], []),
    ("c", [ended("a", Failure.CONNECTION_LOST), ended("b", status=200)], [("put", "b")]),
    ("a", [ended("a", Failure.EDGE_503, 503)], []),
    ("a", [ended("a", Failure.AT_CAPACITY, 429), ended("b", status=200)], []),
    ("a", [Attempt("a", Failure.HEADER_TIMEOUT, Blame.NOBODY, None, "", 1.0)],
     [("discard", "a")]),
], ids=["kept", "first success", "moved", "moved and nobody answers", "the last candidate's 503",
        "the failure of another model", "a failure without a choice", "429", "no 2xx",
        "the client left", "an edge failure", "an edge failure, and another answers",
        "an edge failure of another model", "HTML", "full, and another answers",
        "a timeout on a large body"])
def test_attempts_change_the_choice_only_by_a_success_and_by_the_chosen_models_failure(
        chosen, attempts, calls):
    """005-R4, 005-R5"""
    store = Store(StickyChoice(chosen))
    client_keys = ClientKeys("secret", None)
    environ = {"HTTP_AUTHORIZATION": "Bearer token"}
    stickiness = Stickiness(store, client_keys).for_client(environ)
    for attempt in attempts:
        stickiness.attempted(attempt)
    key = client_keys.derive(environ)
    assert store.calls == [("get", key)] + [(call, key, model) for call, model in calls]
    assert (stickiness.client_key, stickiness.choice) == (key, store.choice)


@pytest.mark.parametrize("passed_over, calls", [("a", []), ("b", ["put"])])
def test_a_choice_that_is_passed_over_when_its_turn_comes_is_kept(passed_over, calls):
    """005-R15"""
    store = Store(StickyChoice("a"))
    stickiness = Stickiness(store, ClientKeys("secret", None)).for_client({})
    stickiness.passed_over(passed_over, "full")
    stickiness.attempted(ended("c", status=200))
    assert [call for call, *_ in store.calls[1:]] == calls


@pytest.mark.parametrize("in_list, attempts, call", [
    (True, [ended("a", status=200)], ("put", "a")),
    (True, [FAILED_A, ended("b", status=200)], ("put", "b", "by a list")),
    (False, [FAILED_A, ended("b", status=200)], ("put", "b"))])
def test_only_a_success_after_a_failure_in_list_mode_is_a_lists_failover(in_list, attempts, call):
    """005-R16"""
    store = Store(StickyChoice(None))
    stickiness = Stickiness(store, ClientKeys("secret", None)).for_client({}, in_list=in_list)
    for attempt in attempts:
        stickiness.attempted(attempt)
    assert store.calls[1:] == [(call[0], stickiness.client_key, *call[1:])]


def test_a_decision_is_told_how_long_ago_a_list_made_the_choice():
    """005-R16"""
    for moved_at, moved_ago_s in ((None, None), (5.0, 2.5)):
        store = Store(StickyChoice("a", moved_at=moved_at))
        stickiness = Stickiness(store, ClientKeys("secret", None)).for_client({})
        assert stickiness.caller(7.5) == Caller(stickiness.client_key, "a", moved_ago_s)

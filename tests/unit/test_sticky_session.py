"""What the attempts of one request do to the client's sticky choice."""

import dataclasses

import pytest

from app.routing.client_key import ClientKeys
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

    def put(self, client_key, model, choice):
        self.calls.append(("put", client_key, model))
        assert choice is self.choice

    def discard(self, client_key, choice):
        self.calls.append(("discard", client_key, choice.model))
        assert choice is self.choice


@dataclasses.dataclass
class Attempt:
    """What stickiness reads of an attempt."""

    model: str
    failure: str | None = None
    status: int | None = None


FAILED_A = Attempt("a", failure="upstream_header_timeout")


@pytest.mark.parametrize("chosen, attempts, moved, calls", [
    ("a", [Attempt("a", status=200)], False, [("put", "a")]),
    (None, [Attempt("a", status=204)], False, [("put", "a")]),
    ("a", [FAILED_A, Attempt("b", status=200)], True, [("discard", "a"), ("put", "b")]),
    ("a", [FAILED_A], True, [("discard", "a")]),
    ("a", [Attempt("a", "upstream_503", 503)], True, [("discard", "a")]),
    ("b", [FAILED_A, Attempt("b", status=299)], False, [("put", "b")]),
    (None, [FAILED_A], False, []),
    ("a", [Attempt("a", status=429)], False, []),
    ("a", [Attempt("a", status=300)], False, []),
    ("a", [Attempt("a")], False, []),
], ids=["kept", "first success", "moved", "moved and nobody answers", "the last candidate's 503",
        "the failure of another model", "a failure without a choice", "429", "no 2xx",
        "the client left"])
def test_attempts_change_the_choice_only_by_a_success_and_by_the_chosen_models_failure(
        chosen, attempts, moved, calls):
    """005-R4, 005-R5"""
    store = Store(StickyChoice(chosen))
    client_keys = ClientKeys("secret", None)
    environ = {"HTTP_AUTHORIZATION": "Bearer token"}
    stickiness = Stickiness(store, client_keys).for_client(environ)
    for ended in attempts:
        stickiness.attempted(ended)
    key = client_keys.derive(environ)
    assert store.calls == [("get", key)] + [(call, key, model) for call, model in calls]
    assert (stickiness.client_key, stickiness.choice) == (key, store.choice)
    assert stickiness.moved is moved

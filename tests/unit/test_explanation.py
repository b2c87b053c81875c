"""A decision in words and numbers."""

import json

from hypothesis import given
from hypothesis import strategies as st

from app.routing.aliases import Alias
from app.routing.catalogue import Catalogue, Model
from app.routing.conditions import QUIET
from app.routing.decision import Rules, placed, read_asked
from app.routing.explanation import MOST_ROWS, explained, shown
from app.routing.needs import NO_NEEDS, Needs
from app.routing.ranking import Candidate, Ranking, Rejection, ScoreParts
from app.routing.view import Snapshot, View
from tests.unit.test_choice import (CHUTES, CONDITIONS, IMAGE, KEYS, MODELS, NAMES, TIERS, decided,
                                    view_of)


@given(CHUTES, MODELS, TIERS, CONDITIONS, KEYS, st.booleans(), st.sampled_from([NO_NEEDS, IMAGE]),
       st.sampled_from(["alias", "a/One", "d,alias", "c,d,b/Two"]), st.sampled_from([None, *NAMES]))
def test_what_is_explained_is_what_is_decided(
        chutes, models, tiers, conditions, key, balanced, needs, asked, choice):
    """008-R21, 008-R22"""
    view = view_of(chutes, models or {"d": Model("d"), "a/One": Model("a/One")}, tiers)
    decision = decided(view, Rules(True, balanced), needs, key, conditions, asked, choice, 0.0)
    told = explained(view, read_asked(view, asked, 8), needs, conditions, decision)
    assert [each["model"] for each in told["candidates"]] == list(decision.candidates)
    assert (told["mode"], told["sticky"]) == (decision.mode, decision.sticky or None)
    assert {each["model"] for each in told["candidates"] if each["in_band"]} == decision.band
    skipped = [(each["model"], each["reason"]) for each in told["passed_over"]]
    assert skipped[:len(decision.skipped)] == list(decision.skipped)
    assert len(skipped) == len(dict(skipped))
    for each in told["candidates"]:
        assert each["cooling_s"] == round(conditions.cooling.get(each["model"], 0.0), 1)
        assert each["open"] == conditions.open_requests.get(each["model"], 0)
        assert (each["fit"] == "no") == bool(each["missing"])
    assert json.loads(json.dumps(told)).keys() == told.keys()


def test_of_very_many_models_the_first_thousand_are_told_with_pauses():
    """008-R24"""
    candidates = tuple(Candidate(f"m{n}", ScoreParts(1.0, 0.0, 0.0)) for n in range(3000))
    rejected = {f"r{n}": Rejection.NO_INSTANCE for n in range(3000)}
    view = View(Catalogue.of([Model("m0")], 0.0), Snapshot(Ranking(candidates, rejected), 0.0),
                {"alias": Alias("alias", (("m*0",),)), "all": Alias("all")})
    for asked, count, reason in (("alias", 300, "not_matched"), ("all", 3000, "no_instance")):
        pauses = []
        told = explained(view, read_asked(view, asked, 8), NO_NEEDS, QUIET,
                         decided(view, asked=asked), lambda: pauses.append(1))
        assert told["candidate_count"] == count
        assert len(told["candidates"]) == min(count, MOST_ROWS) and len(pauses) > 5
        assert len(told["passed_over"]) == MOST_ROWS
        assert told["passed_over"][0]["reason"] == reason


def test_each_filter_of_an_alias_is_told_by_its_key():
    """008-R23"""
    alias = Alias("x", (("a*",),), ("*b",), confidential=True, min_context=100)
    both = {"confidential": True, "context_length": 100}
    assert [alias.left_out(name, model) for name, model in (
        ("a", Model("a", **both)), ("ab", Model("ab", **both)), ("a", None), ("a", Model("a")),
        ("a", Model("a", confidential=True, context_length=99)), ("c", Model("c", **both)))] == [
            None, "exclude", "confidential", "confidential", "min_context", "not_matched"]


def test_what_the_ranking_does_not_know_is_null():
    """008-R22"""
    view = View(Catalogue.of([Model("a", inputs=frozenset(["text"]))], 0.0))
    asked = read_asked(view, "a", 8)
    [one] = placed(view, asked, Needs(), QUIET, decided(view, asked="a"))
    assert shown(one) == {
        "model": "a", "score": None, "parts": dict.fromkeys(("free", "scalable", "rate_limited")),
        "instances": 0, "utilization": None, "tier": 0, "fit": "yes", "missing": (),
        "cooling_s": 0.0, "in_band": False, "open": 0}

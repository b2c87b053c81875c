"""From the model string to the candidates."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ApiError
from app.routing.aliases import Alias
from app.routing.catalogue import Catalogue, Model
from app.routing.conditions import Conditions
from app.routing.decision import Caller, Decision, Mode, Rules, Skipped, decide, read_asked
from app.routing.needs import NO_NEEDS
from app.routing.ranking import Candidate, Ranking, ScoreParts
from app.routing.view import Snapshot, View


def ranked(*names):
    """Return a snapshot of candidates, best first."""
    return Snapshot(Ranking(tuple(Candidate(name, ScoreParts(0, 0, 0)) for name in names)), 0.0)


LISTED = Catalogue.of(map(Model, ["a", "b", "c-TEE"]), 0.0)
VIEW = View(LISTED, ranked("b", "a"))


def decided(model, choice=None, view=VIEW, most=8, pass_unknown=False, cooling=()):
    return decide(view, read_asked(view, model, most), NO_NEEDS, Caller("", choice, 0.0),
                  Rules(pass_unknown), Conditions(dict.fromkeys(cooling, 5.0)))


ITEMS = st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","),
                         min_size=1, max_size=4), min_size=1, max_size=8)
PADDING = st.sampled_from(["", " ", "\t", " \r\n", "\f\v"])


@given(items=ITEMS, pads=st.lists(st.tuples(PADDING, PADDING), min_size=8, max_size=8),
       empties=st.lists(st.integers(0, 8), max_size=3))
def test_a_list_is_its_items_trimmed_without_empties_and_repeats(items, pads, empties):
    """004-R1"""
    words = [left + item + right for item, (left, right) in zip(items, pads)]
    for place in empties:
        words.insert(place, pads[0][0])
    decision = decided(",".join(words) + ",", view=View())
    assert decision == Decision(Mode.LIST, tuple(dict.fromkeys(items)), "miss")


@pytest.mark.parametrize("model, candidates", [
    ("a,,b,", ("a", "b")), (" a , b , b ", ("a", "b")), ("b,a,b", ("b", "a")), ("a,", ("a",)),
    ("c-TEE:x,a:y", ("c-TEE:x", "a:y")), ("a\u00a0b:z,b", ("b",)), ("a\u00e9\n,\x00,b", ("b",))])
def test_odd_lists(model, candidates):
    """004-R1, 004-R4"""
    assert decided(model).candidates == candidates
    items = tuple(dict.fromkeys(item.strip() for item in model.split(",") if item))
    assert decided(model, pass_unknown=True).candidates == items


@pytest.mark.parametrize("model", [",", " , ", ",,,\t"])
def test_a_list_of_nothing_is_invalid(model):
    """004-R2"""
    with pytest.raises(ApiError) as caught:
        decided(model)
    assert caught.value.code == "invalid_model_list"


def test_a_list_may_be_as_long_as_allowed_counting_each_name_once():
    """004-R2"""
    assert len(decided("a,a,b,b,c-TEE,c-TEE", most=3).candidates) == 3
    with pytest.raises(ApiError, match="names 3 models; at most 2"):
        decided("a,b,c-TEE", most=2)


def test_a_list_keeps_the_clients_order_whatever_the_ranking():
    """004-R5"""
    assert decided("a,b").candidates == ("a", "b")
    assert decided("chutesai/AutoPilot").candidates == ("b", "a")


@pytest.mark.parametrize("model, admitted", [
    ("a", True), ("c-TEE", True), ("c", False), ("a:THINKING", True), ("a:b:c", False),
    ("a:", False), (":a", False), ("x:a", False), ("A", False), (" a", False)])
def test_the_allowlist_judges_a_suffixed_name_by_what_stands_before_its_last_colon(
        model, admitted):
    """002-R6, 002-R7"""
    assert VIEW.admits(model) is admitted
    assert View().admits(model)


def test_an_unknown_item_is_skipped_unless_nothing_is_left():
    """002-R51, 004-R3"""
    assert decided("x,b,y,a:z") == Decision(Mode.LIST, ("b", "a:z"), "miss", (
        Skipped("x", "unknown_model"), Skipped("y", "unknown_model")))
    with pytest.raises(ApiError, match="Unknown model: 'x', 'y'."):
        decided("x,y")


def test_unknown_names_pass_where_that_is_wished_or_nothing_is_known():
    """002-R51, 002-R6"""
    assert decided("x,b", pass_unknown=True).candidates == ("x", "b")
    assert decided("x", pass_unknown=True).candidates == ("x",)
    assert decided("x,b", view=View()).candidates == ("x", "b")


@pytest.mark.parametrize("asked, candidates", [
    ("a,auto", ("a", "b")), ("auto,a", ("b", "a")), ("x,auto", ("b", "a")),
    ("auto,auto,c-TEE", ("b", "a", "c-TEE"))])
def test_an_alias_in_a_list_stands_for_its_candidates(asked, candidates):
    """004-R6"""
    named = asked.replace("auto", "chutesai/AutoPilot")
    assert decided(named).candidates == candidates
    with pytest.raises(ApiError) as caught:
        decided("x,chutesai/AutoPilot", view=View(LISTED))
    assert caught.value.code == "no_candidates"


def test_a_list_is_counted_before_its_aliases_stand_for_their_candidates():
    """004-R2, 004-R6"""
    assert decided("chutesai/AutoPilot,c-TEE", most=2).candidates == ("b", "a", "c-TEE")


def test_an_unknown_model_is_named_but_not_at_any_length():
    """004-R3"""
    with pytest.raises(ApiError) as caught:
        decided("x" * 10_000)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("snapshot", [None, ranked()])
def test_an_alias_without_candidates_is_a_503(snapshot):
    """002-R5"""
    with pytest.raises(ApiError) as caught:
        decided("chutesai/AutoPilot", view=View(LISTED, snapshot))
    assert (caught.value.status, caught.value.code) == (503, "no_candidates")


@given(st.permutations("abcd"), st.none() | st.sampled_from("abcdx"))
def test_a_sticky_choice_comes_first_and_the_others_keep_their_order(names, choice):
    """005-R3"""
    decision = decided(",".join(names), choice, View())
    if choice in names:
        names = [choice, *(name for name in names if name != choice)]
    assert decision.candidates == tuple(names)
    assert decision.sticky == {None: "miss", "x": "ignored"}.get(choice, "hit")


@pytest.mark.parametrize("model, cooling, candidates", [
    ("chutesai/AutoPilot", ["b"], ("a", "b")), ("a,b,c-TEE", ["a"], ("b", "c-TEE", "a")),
    ("a,b,c-TEE", ["b", "a"], ("c-TEE", "a", "b")), ("a,b", ["a", "b"], ("a", "b")),
    ("a", ["a"], ("a",))])
def test_what_cools_comes_last_and_is_never_removed(model, cooling, candidates):
    """003-R42"""
    assert decided(model, cooling=cooling).candidates == candidates


def test_a_sticky_choice_that_cools_is_passed_over_and_kept():
    """003-R42"""
    decision = decided("a,b", "a", cooling=["a"])
    assert (decision.candidates, decision.sticky, decision.keep) == (("b", "a"), "ignored", True)


def test_a_direct_request_knows_no_sticky_choice():
    """005-R3"""
    assert decided("a", "a") == decided("a") == Decision(Mode.DIRECT, ("a",))


@pytest.mark.parametrize("model, mode", [
    ("chutesai/AutoPilot", Mode.ALIAS), ("chutesai-routing/AutoPilot", Mode.ALIAS),
    ("chutesai/autopilot", Mode.DIRECT), ("a,", Mode.LIST), ("a", Mode.DIRECT)])
def test_the_model_field_says_the_mode(model, mode):
    """002-R4"""
    assert read_asked(VIEW, model, 8).mode is mode


@pytest.mark.parametrize("alias, pool", [
    (Alias("x"), ("org/a", "org/b", "org/B", "c.d")),
    (Alias("x", (("c*", "*/b"), ("*",))), ("org/b", "c.d", "org/a", "org/B")),
    (Alias("x", (("*[ab]", "?.?"),)), ("c.d",)),
    (Alias("x", (("*",),), ("org/*",)), ("c.d",)),
    (Alias("x", ((),)), ())])
def test_an_alias_chooses_by_globs_tier_by_tier_and_keeps_the_ranking_within_one(alias, pool):
    """002-R4"""
    assert alias.pool(ranked("org/a", "org/b", "org/B", "c.d").ranking.candidates).names == pool


def matches(glob, name):
    """Say whether a glob matches a name: the places in the name that its characters lead to."""
    places = {0}
    for char in glob:
        if char == "*":
            places = set(range(min(places, default=len(name) + 1), len(name) + 1))
        else:
            places = {place + 1 for place in places
                      if name[place:place + 1] == char or char == "?" and place < len(name)}
    return len(name) in places


@given(st.text("ab/*?", min_size=1, max_size=9), st.text("ab/[.", min_size=1, max_size=9))
def test_a_glob_matches_what_its_stars_can_stand_for(glob, name):
    """002-R50"""
    pool = Alias("x", ((glob,),)).pool(ranked(name).ranking.candidates)
    assert pool.names == ((name,) if matches(glob, name) else ())


def test_many_stars_cost_no_more_than_their_number():
    """003-R33"""
    def seconds(glob):
        alias = Alias("x", ((glob, "*c"),))
        alias.pool(candidates)
        began = time.thread_time()
        assert alias.pool(candidates).names == ()
        return time.thread_time() - began

    candidates = ranked(*("a" * (120 + number) for number in range(5))).ranking.candidates
    assert min(seconds("*a*a*a*a*b") for _ in range(5)) < 100 * min(
        seconds("*b") for _ in range(5))


@pytest.mark.parametrize("model, name", [
    ("chutesai/AutoPilot", "chutesai/AutoPilot"), ("a", "a"), ("a:secret-words", "a"),
    ("secret", "other"), ("a,b", "other"), ("a:b:c", "other")])
def test_names_in_logs_come_from_a_closed_set(model, name):
    """001-R8"""
    assert VIEW.label(model) == name
    assert View().label("a") == "other"


def test_a_snapshot_introduces_itself():
    """003-R1"""
    assert repr(VIEW.snapshot) == "<Snapshot taken_at=0.0 candidates=2>"

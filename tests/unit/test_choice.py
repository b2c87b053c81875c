"""How an alias's models are put in order for one request."""

import collections
import dataclasses
import math

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.routing.aliases import Alias
from app.routing.catalogue import Catalogue, Model
from app.routing.choice import staleness
from app.routing.conditions import QUIET, Conditions
from app.routing.decision import (Caller, Mode, Placed, Rules, Skipped, decide, placed,
                                  read_asked)
from app.routing.needs import NO_NEEDS, Fit, Needs
from app.routing.ranking import Candidate, Ranking, ScoreParts
from app.routing.view import Snapshot, View

AUTO = "chutesai/AutoPilot"
BALANCED = Rules(balanced=True)
NAMES = ["a/One", "a/Two", "b/One", "b/Two", "c", "d"]
IMAGE = Needs(inputs=frozenset(["image"]))
CHUTES = st.lists(st.tuples(st.integers(1, 40), st.floats(-3, 1.2)), min_size=6, max_size=6)
MODELS = st.fixed_dictionaries({}, optional={name: st.builds(
    Model, st.just(name), inputs=st.sampled_from(
        [None, frozenset(["text"]), frozenset(["image"])])) for name in NAMES})
CONDITIONS = st.builds(
    Conditions, st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 60)),
    st.dictionaries(st.sampled_from([*NAMES, "gone"]), st.integers(0, 2000)), st.floats(0, 400))
TIERS = st.sampled_from([(("*",),), (("a/*",), ("*",)), (("c", "d"), ("*/One",), ("*",))])
KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)


def candidate(name, instances, score):
    return Candidate(name, ScoreParts(score, 0.0, 0.0), instances)


def view_of(chutes, models=None, tiers=(("*",),)):
    """Return a view of these chutes, given as (instances, share of them that is free)."""
    each = [candidate(name, n, n * free) for name, (n, free) in zip(NAMES, chutes)]
    ranking = Ranking(tuple(sorted(each, key=lambda one: -one.parts.score)))
    return View(Catalogue(models, 0.0) if models else None, Snapshot(ranking, 0.0),
                {"alias": Alias("alias", tiers), AUTO: Alias(AUTO)})


def decided(view, rules=BALANCED, needs=NO_NEEDS, key="k", conditions=QUIET, asked="alias",
            choice=None, moved_ago_s=None):
    return decide(view, read_asked(view, asked, 8), needs, Caller(key, choice, moved_ago_s), rules,
                  conditions)


def ranked_names(view):
    return [one.name for one in view.snapshot.ranking.candidates]


@given(CHUTES, MODELS, TIERS, CONDITIONS, KEYS, st.booleans(), st.sampled_from([NO_NEEDS, IMAGE]))
def test_cooling_then_fit_then_tier_then_the_unknown_order_whatever_the_choice(
        chutes, models, tiers, conditions, key, balanced, needs):
    """003-R60, 003-R45, 003-R22"""
    view = view_of(chutes, models, tiers)
    order = decided(view, Rules(balanced=balanced), needs, key, conditions).candidates
    assert sorted(order) == NAMES
    tier_of = {member.name: member.tier for member in view.pool("alias").members}
    heeded = 2 * len(conditions.cooling) <= len(NAMES)

    def group(name):
        verdict = view.fit(name, needs)
        return (heeded and name in conditions.cooling, verdict is Fit.NO, tier_of[name],
                verdict is Fit.UNKNOWN)
    groups = [group(name) for name in order]
    assert groups == sorted(groups)
    if not balanced:
        ranking = ranked_names(view)
        assert list(order) == sorted(order, key=lambda name: (group(name), ranking.index(name)))


@given(CHUTES, MODELS, CONDITIONS, KEYS, st.sampled_from([NO_NEEDS, IMAGE]))
def test_the_same_view_and_key_give_the_same_order_in_every_worker(
        chutes, models, conditions, key, needs):
    """003-R45, 003-R47"""
    first, second = (decided(view_of(chutes, models), BALANCED, needs, key, conditions)
                     for _ in range(2))
    assert first == second


@example([(100, -1.0), (1, 2.1)], QUIET, "k")
@given(CHUTES, CONDITIONS, KEYS)
def test_the_band_is_first_and_holds_what_is_not_far_from_the_best_and_the_rest_follows_by_value(
        chutes, conditions, key):
    """003-R46: the formula, written a second time."""
    conditions = dataclasses.replace(conditions, cooling={})
    view = view_of(chutes)
    g = min(max((conditions.feed_age_s - 120) / 180, 0), 1)
    values = {}
    for one in view.snapshot.ranking.candidates:
        weight = ((1 - g) * max(one.parts.score, 0.01 * one.instances) + g * 0.5 * one.instances
                  if g else max(one.parts.score, 0.01 * one.instances))
        values[one.name] = weight - conditions.open_requests.get(one.name, 0) / 32
    best = max(values.values())
    band = {name for name, value in values.items()
            if value >= min(0.5 * (1 - g / 2) * best, best)}
    found = decided(view, BALANCED, NO_NEEDS, key, conditions)
    assert found.band == band == set(found.candidates[:len(band)])
    rest = found.candidates[len(band):]
    ranking = ranked_names(view)
    if len(band) > 1 or band != {ranking[0]}:
        assert list(rest) == sorted(rest, key=lambda name: (-values[name], ranking.index(name)))
    else:
        assert list(found.candidates) == ranking


def test_a_band_of_one_is_the_ranked_order_unless_the_ranking_has_another_first():
    """003-R46"""
    # By value the third would come before the second, whose score is below the least weight.
    chutes = [(100, 0.5), (2, -0.5), (40, -0.4), (1, -2.0)]
    view = view_of(chutes)
    assert decided(view).candidates == ("a/One", "a/Two", "b/Two", "b/One")
    assert decided(view, Rules()).candidates == decided(view).candidates
    busy = Conditions(open_requests={"a/One": 1600})
    assert decided(view, conditions=busy).candidates[0] == "b/One"


@given(st.lists(KEYS, min_size=20, max_size=20), CHUTES, st.sampled_from(NAMES))
def test_a_model_that_goes_moves_only_its_own_clients(keys, chutes, gone):
    """003-R47"""
    view = view_of(chutes)
    best = max(view.snapshot.ranking.candidates, key=lambda one: max(
        one.parts.score, 0.01 * one.instances))
    left = Ranking(tuple(one for one in view.snapshot.ranking.candidates if one.name != gone))
    without = dataclasses.replace(view, snapshot=Snapshot(left, 0.0))
    for key in keys:
        before, after = (decided(which, key=key).candidates for which in (view, without))
        if gone != best.name and before[0] != gone:
            assert after[0] == before[0]
        if gone != best.name and gone not in decided(view).band:
            assert after == tuple(name for name in before if name != gone) or len(
                decided(view).band) == 1


@pytest.mark.parametrize("feed_age_s, weights", [
    (0, [10, 8, 6, 5.5]), (210, [15, 6.5, 5.5, 5.25]), (300, [20, 5, 5, 5])])
def test_clients_share_out_by_weight(feed_age_s, weights):
    """003-R46, 003-R47: chi-square over 4,000 keys; 16.3 is exceeded once in a thousand times."""
    chutes = [(40, 0.25), (10, 0.8), (10, 0.6), (10, 0.55)]
    view = view_of(chutes)
    conditions = Conditions(feed_age_s=feed_age_s)
    names = NAMES[:4]
    band = decided(view, conditions=conditions).band
    shares = {name: weight for name, weight in zip(names, weights) if name in band}
    assert len(shares) > 1
    counted = collections.Counter(
        decided(view, key=f"{number:032x}", conditions=conditions).candidates[0]
        for number in range(4000))
    expected = {name: 4000 * weight / sum(shares.values()) for name, weight in shares.items()}
    assert set(counted) == set(expected)
    assert sum((counted[name] - many) ** 2 / many for name, many in expected.items()) < 16.3


def test_what_is_open_decides_who_is_in_the_band_and_not_who_is_first_in_it():
    """003-R46, 003-R48"""
    view = view_of([(20, 0.5), (20, 0.45)])
    keys = [f"{number:032x}" for number in range(200)]

    def firsts(open_requests):
        return [decided(view, key=key, conditions=Conditions(
            open_requests=open_requests)).candidates[0] for key in keys]
    calm = firsts({})
    assert set(calm) == {"a/One", "a/Two"} and calm == firsts({"a/One": 150})
    assert set(firsts({"a/One": 32 * 6})) == {"a/Two"}
    # More is open than any of them is thought to have room for.
    assert set(firsts({"a/One": 32 * 30, "a/Two": 32 * 31})) == {"a/One"}


@pytest.mark.parametrize("feed_age_s, expected", [
    (0, 0), (119, 0), (120, 0), (210, 0.5), (300, 1), (1e9, 1)])
def test_a_feed_loses_its_weight_from_two_to_five_minutes(feed_age_s, expected):
    """003-R46"""
    assert math.isclose(staleness(feed_age_s), expected)


@pytest.mark.parametrize("rules", [Rules(), BALANCED])
def test_with_more_than_half_of_a_pool_cooling_it_is_ignored_in_an_alias_and_not_in_a_list(rules):
    """003-R60"""
    view = view_of([(n, 0.5) for n in (9, 2, 2, 1)])
    best = ranked_names(view)[0]
    half = Conditions(cooling=dict.fromkeys([best, "a/Two"], 3.0))
    most = Conditions(cooling=dict.fromkeys([best, "a/Two", "b/One"], 3.0))
    assert decided(view, rules, conditions=half).candidates[:1] == ("b/One",)
    assert decided(view, rules, conditions=half).skipped == (
        Skipped(best, "cooling"), Skipped("a/Two", "cooling"))
    assert decided(view, rules, conditions=most) == decided(view, rules)
    named = ",".join(NAMES[:4])
    assert decided(view, rules, conditions=most, asked=named).candidates == (
        "b/Two", "a/One", "a/Two", "b/One")
    assert decided(view, rules, conditions=most, asked="alias,").candidates[0] == "b/Two"
    assert decided(view, rules, conditions=most, asked=best).candidates == (best,)


def test_of_what_cools_only_what_would_have_come_before_the_first_is_passed_over():
    """003-R60, 002-R52"""
    view = view_of([(n, 0.5) for n in (9, 5, 2)])
    assert decided(view, Rules(), conditions=Conditions({"a/Two": 1.0})).skipped == ()
    assert decided(view, Rules(), conditions=Conditions({"a/One": 1.0})).skipped == (
        Skipped("a/One", "cooling"),)
    listed = decided(view, Rules(), conditions=Conditions({"c": 1.0, "d": 1.0}), asked="c,d,a/One")
    assert listed.candidates == ("a/One", "c", "d")
    assert listed.skipped == (Skipped("c", "cooling"), Skipped("d", "cooling"))
    only = decided(view, Rules(), conditions=Conditions({"c": 1.0, "d": 1.0}), asked="c,d")
    assert (only.candidates, only.skipped) == (("c", "d"), ())
    # Without its best model the band is another, and begins anywhere in the ranking.
    shared = view_of([(900, 0.5), *[(2, 0.5)] * 5])
    for number in range(20):
        found = decided(shared, key=str(number), conditions=Conditions({"a/One": 1.0}))
        assert found.skipped == (Skipped("a/One", "cooling"),)


@pytest.mark.parametrize("rules", [Rules(), Rules(balanced=True)])
def test_what_an_alias_passes_over_is_named_in_a_list_too_where_it_would_have_come_first(rules):
    """003-R60, 002-R52, 004-R6"""
    view = view_of([(900, 0.5), (5, 0.5), (2, 0.5)])
    cools = (Skipped("a/One", "cooling"),)
    for asked, cooling, skipped in (
            ("alias,x", ["a/One"], cools), ("x,alias", ["a/One"], ()),
            ("x,alias", ["a/One", "x"], (Skipped("x", "cooling"), *cools)),
            ("alias,x", ["a/One", "x"], cools), ("alias,x", ["x"], ())):
        conditions = Conditions(dict.fromkeys(cooling, 1.0))
        found = decided(view, rules, conditions=conditions, asked=asked)
        assert found.skipped == skipped
        of_alias = decided(view, rules, conditions=conditions).candidates
        assert [name for name in found.candidates if name != "x"] == list(of_alias)


def test_in_a_list_what_cools_of_an_alias_keeps_the_order_that_it_has_in_the_alias():
    """003-R60, 004-R6"""
    # The band of those two alone begins lower than the band of all, and has both.
    view = view_of([(2000, 0.5), (1200, 0.5), (800, 0.5), (2, 0.5)])
    conditions = Conditions(dict.fromkeys(NAMES[1:3], 1.0))
    for key in map(str, range(40)):
        alone = decided(view, conditions=conditions, key=key)
        listed = decided(view, conditions=conditions, key=key, asked="alias,")
        assert (listed.candidates, listed.skipped) == (alone.candidates, alone.skipped)


def test_where_all_of_a_list_cools_its_choice_is_as_good_as_any():
    """005-R15"""
    both = Conditions({"a": 1.0, "b": 2.0})
    found = decided(View(), conditions=both, asked="a,b", choice="b", moved_ago_s=0.0)
    assert (found.candidates, found.sticky, found.skipped) == (("b", "a"), "hit", ())


def test_of_very_many_models_the_best_ranked_are_shared_out_and_the_others_follow():
    """003-R46"""
    names = [f"m{number}" for number in range(600)]
    ranking = Ranking(tuple(candidate(name, 4, 2.0) for name in names))
    view = View(None, Snapshot(ranking, 0.0), {"alias": Alias("alias")})
    found = decided(view)
    assert found.band == set(names[:512]) == set(found.candidates[:512])
    assert found.candidates[512:] == tuple(names[512:])


def test_an_alias_in_a_list_has_the_band_that_it_has_alone():
    """003-R49, 004-R6"""
    view = view_of([(4, 0.5)] * 6)
    assert decided(view, asked="alias,").band == decided(view).band == set(NAMES)
    assert decided(view, Rules()).band == set()


FULL = msgspec.structs.replace(candidate("a/Two", 4, 2.0), full=True)


@pytest.mark.parametrize("others_full, conditions, expected", [
    (False, Conditions(), ("ignored", "full")),
    (True, Conditions(), ("hit", None)),
    (False, Conditions({"a/Two": 1.0}), ("ignored", "cooling")),
    (True, Conditions({"a/Two": 1.0, "a/One": 1.0}), ("hit", None))])
def test_a_sticky_choice_is_passed_over_and_kept_while_it_cools_or_is_full_and_another_is_not(
        others_full, conditions, expected):
    """005-R15"""
    first = msgspec.structs.replace(candidate("a/One", 9, 5.0), full=others_full)
    view = View(None, Snapshot(Ranking((first, FULL)), 0.0))
    found = decided(view, conditions=conditions, asked=AUTO, choice="a/Two")
    sticky, why = expected
    assert found.sticky == sticky and found.keep is (why is not None)
    assert found.candidates[0] == ("a/One" if why else "a/Two")
    assert found.skipped == ((Skipped("a/Two", why),) if why else ())


def test_a_passed_over_choice_is_named_once_also_where_it_stands_first():
    """005-R15, 002-R52"""
    view = view_of([(n, 0.5) for n in (9, 5, 2)])
    found = decided(view, Rules(), conditions=Conditions({"a/One": 1.0}), choice="a/One")
    assert (found.sticky, found.keep) == ("ignored", True)
    assert found.skipped == (Skipped("a/One", "cooling"),)


@pytest.mark.parametrize("moved_ago_s, first", [
    (0.0, "b"), (59.9, "b"), (60.0, "a"), (None, "a")])
def test_a_choice_reorders_a_list_for_a_while_after_a_lists_failover_made_it(moved_ago_s, first):
    """005-R16"""
    for asked in ("a,b,c", "a,b"):
        found = decided(View(), asked=asked, choice="b", moved_ago_s=moved_ago_s)
        assert found.candidates[0] == first
        assert found.sticky == ("hit" if first == "b" else "ignored")
        assert not found.keep
    assert decided(View(), Rules(list_return_s=0), asked="a,b", choice="b",
                   moved_ago_s=0.0).candidates[0] == "a"


def test_an_alias_goes_by_the_choice_however_it_was_made():
    """005-R16, 005-R3"""
    view = view_of([(n, 0.5) for n in (9, 5, 2)])
    for moved_ago_s in (None, 0.0, 500.0):
        found = decided(view, choice="b/One", moved_ago_s=moved_ago_s)
        assert (found.mode, found.candidates[0], found.sticky) == (Mode.ALIAS, "b/One", "hit")


@given(CHUTES, MODELS, TIERS, CONDITIONS, st.sampled_from(["alias", "c,alias,x", "d,c"]),
       st.sampled_from([NO_NEEDS, IMAGE]))
def test_each_candidate_of_a_decision_can_be_explained(
        chutes, models, tiers, conditions, asked, needs):
    """003-R49"""
    view = view_of(chutes, {**models, "x": Model("x"), "c": Model("c"), "d": Model("d")}, tiers)
    found = decided(view, BALANCED, needs, conditions=conditions, asked=asked)
    rows = placed(view, read_asked(view, asked, 8), needs, conditions, found)
    assert [row.standing.name for row in rows] == list(found.candidates)
    tier_of = {member.name: member.tier for member in view.pool("alias").members}
    for row in rows:
        name = row.standing.name
        assert row == Placed(row.standing, conditions.cooling.get(name, 0.0),
                             conditions.open_requests.get(name, 0), name in found.band)
        assert row.standing.fit is view.fit(name, needs)
        assert row.standing.tier == (tier_of.get(name, 0) if "alias" in asked else 0)
        assert row.standing.candidate == (view.candidate(name) or candidate("x", 0, 0.0))

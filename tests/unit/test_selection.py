"""From the model string to the candidates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ApiError
from app.routing.ranking import Candidate
from app.routing.selection import Mode, Route, log_name, select
from app.routing.snapshot import Allowlist, Snapshot

LISTED = Allowlist(frozenset(["a", "b", "c-TEE"]), 0.0)
RANKED = Snapshot((Candidate("b", 2.0), Candidate("a", 1.0)), 0.0)
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
    route = select(",".join(words) + ",", None, None, 8)
    assert route == Route(Mode.LIST, tuple(dict.fromkeys(items)))


@pytest.mark.parametrize("model, candidates", [
    ("a,,b,", ("a", "b")), (" a , b , b ", ("a", "b")), ("b,a,b", ("b", "a")), ("a,", ("a",)),
    ("c-TEE:x,a:y", ("c-TEE:x", "a:y")), ("a\u00a0b:z,b", None)])
def test_odd_lists(model, candidates):
    """004-R1, 004-R4"""
    if candidates is None:
        with pytest.raises(ApiError) as caught:
            select(model, LISTED, RANKED, 8)
        assert caught.value.code == "invalid_model_list"
    else:
        assert select(model, LISTED, RANKED, 8).candidates == candidates


@pytest.mark.parametrize("model", [",", " , ", ",,,\t"])
def test_a_list_of_nothing_is_invalid(model):
    """004-R2"""
    with pytest.raises(ApiError) as caught:
        select(model, LISTED, RANKED, 8)
    assert caught.value.code == "invalid_model_list"


def test_a_list_may_be_as_long_as_allowed_counting_each_name_once():
    """004-R2"""
    assert len(select("a,a,b,b,c-TEE,c-TEE", LISTED, RANKED, 3).candidates) == 3
    with pytest.raises(ApiError, match="names 3 models; at most 2"):
        select("a,b,c-TEE", LISTED, RANKED, 2)


def test_a_list_keeps_the_clients_order_whatever_the_ranking():
    """004-R5"""
    assert select("a,b", LISTED, RANKED, 8).candidates == ("a", "b")
    assert select("chutesai/AutoPilot", LISTED, RANKED, 8).candidates == ("b", "a")


@pytest.mark.parametrize("model, admitted", [
    ("a", True), ("c-TEE", True), ("c", False), ("a:THINKING", True), ("a:b:c", False),
    ("a:", False), (":a", False), ("x:a", False), ("A", False), (" a", False)])
def test_the_allowlist_judges_a_suffixed_name_by_what_stands_before_its_last_colon(
        model, admitted):
    """002-R6, 002-R7"""
    assert LISTED.admits(model) is admitted
    assert Allowlist(frozenset(), 0.0).admits(model)


def test_an_unknown_model_is_named_but_not_at_any_length():
    """004-R3"""
    with pytest.raises(ApiError) as caught:
        select("x" * 10_000, LISTED, RANKED, 8)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("snapshot", [None, Snapshot((), 0.0)])
def test_an_alias_without_candidates_is_a_503(snapshot):
    """002-R5"""
    with pytest.raises(ApiError) as caught:
        select("chutesai/AutoPilot", LISTED, snapshot, 8)
    assert (caught.value.status, caught.value.code) == (503, "no_candidates")


@given(st.permutations("abcd"), st.none() | st.sampled_from("abcdx"))
def test_a_sticky_choice_comes_first_and_the_others_keep_their_order(names, choice):
    """005-R3"""
    preferred = Route(Mode.LIST, tuple(names)).preferring(choice).candidates
    if choice in names:
        assert preferred[0] == choice
        names.remove(choice)
        assert preferred[1:] == tuple(names)
    else:
        assert preferred == tuple(names)


@pytest.mark.parametrize("model, name", [
    ("chutesai/AutoPilot", "chutesai/AutoPilot"), ("a", "a"), ("a:secret-words", "a"),
    ("secret", "other"), ("a,b", "other"), ("a:b:c", "other")])
def test_names_in_logs_come_from_a_closed_set(model, name):
    """001-R8"""
    assert log_name(model, LISTED) == name
    assert log_name("a", None) == "other"


def test_a_snapshot_introduces_itself():
    """003-R1"""
    assert repr(RANKED) == "<Snapshot taken_at=0.0 candidates=2>"

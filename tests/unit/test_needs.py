"""What a request needs, what a model declares, and the order that follows."""

import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.aliases import Alias
from app.routing.catalogue import Catalogue, Model
from app.routing.choice import line_up
from app.routing.decision import Caller, decide, read_asked
from app.routing.model_field import find_model
from app.routing.needs import NO_NEEDS, Fit, Needs, fit
from app.routing.needs_reader import read_needs
from app.routing.ranking import Candidate, Ranking, ScoreParts
from app.routing.view import Snapshot, View

AUTO = "chutesai/AutoPilot"
IMAGE = {"type": "image_url", "image_url": {"url": "data:,x"}}
LONG = "word " * 12_000


def needs_of(**body):
    return read_needs(find_model(json.dumps({"model": AUTO, **body}).encode()).members)


def timed(function):
    """Return the processor time of a call, seconds."""
    before = time.process_time()
    function()
    return time.process_time() - before


def said(*content):
    return [{"role": "user", "content": each} for each in content]


@pytest.mark.parametrize("body, needs", [
    ({}, NO_NEEDS),
    ({"messages": said("hello"), "tools": [], "functions": [], "response_format": {"type": "text"},
      "max_tokens": 4000}, NO_NEEDS),
    ({"tools": [{"type": "function"}]}, Needs(frozenset(["tools"]))),
    ({"functions": [{"name": "f"}]}, Needs(frozenset(["tools"]))),
    ({"response_format": {"type": "json_schema", "json_schema": {}}},
     Needs(frozenset(["structured_outputs"]))),
    ({"response_format": {"type": "json_object"}}, Needs(frozenset(["json_mode"]))),
    ({"messages": said([{"type": "text", "text": "what is it?"}, IMAGE])},
     Needs(inputs=frozenset(["image"]))),
    ({"messages": said([{"type": "video_url"}], "x", [{"type": "input_audio"}])},
     Needs(inputs=frozenset(["video", "audio"]))),
    ({"messages": said(LONG, [{"type": "text", "text": LONG}])}, Needs(context=30_000)),
    ({"messages": said("é" * 10_000)}, Needs(context=5_000)),
    ({"messages": said("中" * 8_000)}, Needs(context=6_000)),
    ({"messages": said("\n" * 20_000)}, Needs(context=5_000)),
    ({"messages": [{"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": LONG}}]}]}, Needs(context=15_000)),
    ({"messages": said("x" * 400), "max_tokens": 4_000}, Needs(context=4_100)),
    ({"messages": said("x" * 400), "max_tokens": 3_996}, NO_NEEDS),
    ({"max_completion_tokens": 5_000, "max_tokens": 9_000}, Needs(context=5_000)),
    ({"max_completion_tokens": None, "max_tokens": 9_000}, Needs(context=9_000)),
    ({"prompt": LONG}, Needs(context=15_000)),
    ({"prompt": [LONG, "short"], "max_tokens": 1}, Needs(context=15_001)),
    ({"prompt": [7] * 5_000}, Needs(context=5_000)),
    ({"prompt": [[7] * 9, [7] * 5_000]}, Needs(context=5_000)),
    ({"messages": said("x"), "prompt": LONG}, NO_NEEDS)])
def test_a_body_says_what_it_needs(body, needs):
    """003-R21"""
    assert needs_of(**body) == needs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["x", "image_url", "json_schema", "\\", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["content", "type", "text", "tool_calls", "function", "arguments", "role"]),
        inner, max_size=3), max_leaves=12)


@given(st.dictionaries(st.sampled_from([
    "messages", "prompt", "tools", "functions", "response_format", "max_tokens",
    "max_completion_tokens"]), JSON))
def test_an_odd_body_is_no_error(body):
    """003-R21"""
    needs_of(**body)


@given(st.lists(JSON, max_size=3), st.lists(JSON, max_size=3))
def test_an_odd_message_or_part_costs_nothing_but_itself(messages, parts):
    """003-R21"""
    found = needs_of(messages=[*messages, {"content": [*parts, IMAGE]}, {"content": LONG}])
    assert "image" in found.inputs and found.context >= 15_000


def test_a_number_that_is_too_large_costs_nothing_but_itself():
    """003-R21"""
    body = (b'{"model":"a","messages":[1e400,{"content":[1e400,{"type":1e400},'
            b'{"type":"image_url"}]}],"tools":[1],"max_tokens":1e400}')
    assert read_needs(find_model(body).members) == Needs(
        frozenset(["tools"]), frozenset(["image"]))


@pytest.mark.parametrize("head", ["中" * 170, "\n" * 510])
def test_escapes_at_the_head_of_a_text_are_not_taken_for_its_rest(head):
    """003-R21"""
    found = needs_of(messages=said(head + "word " * 40_000))
    assert 45_000 < found.context < 55_000


@pytest.mark.parametrize("text, needs", [
    ("x" * 40, Needs(context=13_107)), ("", Needs(inputs=frozenset(["image"])))])
def test_more_messages_than_are_looked_at_are_judged_by_their_bytes(text, needs):
    """003-R21"""
    messages = said(*[text] * 700) if text else said(*["x"] * 700, [IMAGE])
    found = needs_of(messages=messages)
    assert found.inputs == needs.inputs and bool(found.context) is bool(needs.context)


@pytest.mark.parametrize("member", [
    '"messages": [%s]' % ",".join(["{}"] * 349_000), '"messages": [%s]' % ",".join(["1"] * 500_000),
    '"messages": [{"content": [%s]}]' % ",".join(["{}"] * 349_000),
    '"messages": [%s]' % ",".join(["[[]]"] * 200_000),
    '"prompt": [%s]' % ",".join(['""'] * 349_000),
    '"prompt": [%s]' % ",".join(["[1]"] * 260_000),
    '"response_format": {"type": [%s]}' % ",".join(["1"] * 500_000)])
def test_a_body_of_odd_values_costs_little_more_than_a_plain_one_of_its_size(member):
    """003-R21: each of these took 7 to 150 times as long as the check of the body's syntax."""
    members = find_model(b'{"model": "a", %s}' % member.encode()).members
    allocated = sys.getallocatedblocks()
    read_needs(members)
    assert sys.getallocatedblocks() - allocated < 10_000
    took = [timed(lambda: read_needs(members)) for _ in range(5)]
    syntax = [timed(lambda: json.loads(b"{%s}" % member.encode())) for _ in range(5)]
    assert min(took) < min(syntax)


FEATURES = frozenset(["tools", "json_mode", "structured_outputs"])
INPUTS = frozenset(["image", "audio", "video"])


@pytest.mark.parametrize("needs, model, verdict", [
    (NO_NEEDS, None, (Fit.YES, ())),
    (NO_NEEDS, Model("m", context_length=1, features=frozenset()), (Fit.YES, ())),
    (Needs(FEATURES), None, (Fit.UNKNOWN, ())),
    (Needs(frozenset(["tools"])), Model("m", features=FEATURES), (Fit.YES, ())),
    (Needs(FEATURES), Model("m", features=frozenset(["tools"])),
     (Fit.NO, ("json_mode", "structured_outputs"))),
    (Needs(inputs=frozenset(["image"])), Model("m", inputs=frozenset(["text"])),
     (Fit.NO, ("image",))),
    (Needs(context=5000), Model("m", context_length=4999), (Fit.NO, ("context",))),
    (Needs(context=5000), Model("m", context_length=5000), (Fit.YES, ())),
    (Needs(FEATURES, context=5000), Model("m", context_length=5000), (Fit.UNKNOWN, ())),
    (Needs(FEATURES, context=5000), Model("m", context_length=1), (Fit.NO, ("context",)))])
def test_a_model_fits_or_does_not_or_does_not_say(needs, model, verdict):
    """003-R22"""
    assert fit(needs, model) == verdict


NAMES = ["a/One", "a/Two", "b/One", "b/Two-TEE", "c/Guard", "d"]
NEEDS = st.builds(Needs, st.frozensets(st.sampled_from(sorted(FEATURES))),
                  st.frozensets(st.sampled_from(sorted(INPUTS))), st.sampled_from([0, 5000, 9000]))
MODELS = st.fixed_dictionaries({}, optional={name: st.builds(
    Model, st.just(name), context_length=st.sampled_from([None, 4096, 8000, 100_000]),
    features=st.none() | st.frozensets(st.sampled_from(sorted(FEATURES))),
    inputs=st.none() | st.frozensets(st.sampled_from(sorted(INPUTS))),
    confidential=st.sampled_from([None, False, True])) for name in NAMES})
GLOBS = st.lists(st.sampled_from(["*", "a/*", "*Two*", "?", "c/Guard", "[ab]*"]), min_size=1,
                 max_size=2).map(tuple)
ALIASES = st.builds(Alias, st.just("alias"), st.lists(GLOBS, min_size=1, max_size=3).map(tuple),
                    st.just(()) | GLOBS, st.booleans(), st.sampled_from([0, 0, 8000]))


def view_of(models, ranked, *aliases):
    snapshot = Snapshot(Ranking(tuple(Candidate(n, ScoreParts(0, 0, 0)) for n in ranked)), 0.0)
    built_in = View().aliases
    return View(Catalogue(models, 0.0) if models else None, snapshot,
                {**built_in, **{alias.name: alias for alias in aliases}})


@given(MODELS, st.permutations(NAMES), ALIASES, NEEDS)
def test_what_fits_comes_before_what_does_not_then_tiers_then_the_unknown_then_the_ranking(
        models, ranked, alias, needs):
    """003-R22"""
    view = view_of(models, ranked, alias)
    order = view.lineup("alias", needs).ranked.names
    members = {member.name: member for member in view.pool("alias").members}
    assert sorted(order) == sorted(members)

    def place(name):
        verdict = view.fit(name, needs)
        return (verdict is Fit.NO, members[name].tier, verdict is Fit.UNKNOWN, ranked.index(name))
    assert list(order) == sorted(members, key=place)


@given(MODELS, st.permutations(NAMES), NEEDS)
def test_two_contexts_that_need_the_same_models_share_an_order_and_others_do_not(
        models, ranked, needs):
    """003-R22"""
    view = view_of(models, ranked)
    for context in (0, 4096, 4097, 8000, 8001, 100_000, 100_001):
        wanted = Needs(needs.features, needs.inputs, context)
        assert view.lineup(AUTO, wanted).ranked == line_up(view.pool(AUTO), wanted).ranked


@given(MODELS, st.permutations(NAMES))
def test_without_needs_and_without_a_file_the_order_is_the_rankings(models, ranked):
    """003-R22, 002-R4"""
    view = view_of(models, ranked)
    for name in (AUTO, "chutesai-routing/AutoPilot"):
        assert decide(view, read_asked(view, name, 8), NO_NEEDS).candidates == tuple(ranked)


@given(MODELS, st.permutations(NAMES), ALIASES, NEEDS, st.none() | st.sampled_from(NAMES))
def test_an_alias_never_chooses_what_its_filters_exclude(models, ranked, alias, needs, sticky):
    """002-R50: not for a sticky client and not as the last resort either."""
    view = view_of(models, ranked, alias)
    if not view.pool("alias").members:
        return
    for asked in ("alias", "alias,"):
        for name in decide(view, read_asked(view, asked, 8), needs,
                           Caller("", sticky, 0.0)).candidates:
            model = models.get(name, Model(name))
            assert not alias.confidential or model.confidential
            assert (model.context_length or 0) >= alias.min_context
            assert name != "c/Guard" or not {"c/Guard", "*"} & set(alias.exclude)
            assert not name.startswith("a/") or "a/*" not in alias.exclude


def test_a_sticky_choice_that_does_not_fit_is_kept_and_passed_over_if_another_may_fit():
    """005-R50"""
    models = {name: Model(name, inputs=frozenset(inputs)) for name, inputs in
              (("a/One", ["text"]), ("a/Two", ["image"]))}
    view = view_of(models, ["a/One", "a/Two"])
    image = Needs(inputs=frozenset(["image"]))

    def decided(asked, needs, choice):
        found = decide(view, read_asked(view, asked, 8), needs, Caller("", choice))
        return found.candidates, found.sticky, found.keep
    assert decided(AUTO, image, "a/One") == (("a/Two", "a/One"), "ignored", True)
    assert decided(AUTO, image, "a/Two") == (("a/Two", "a/One"), "hit", False)
    assert decided(AUTO, NO_NEEDS, "a/One") == (("a/One", "a/Two"), "hit", False)
    # Where nothing else fits either, the choice is as good as any.
    audio = Needs(inputs=frozenset(["audio"]))
    assert decided(AUTO, audio, "a/Two") == (("a/Two", "a/One"), "hit", False)

"""What the picture and the page say, from made-up figures."""

import itertools
import json
import re
import time

import pytest

from app.config import load_config
from app.page.document import CONTENT_SECURITY_POLICY, STYLE, document
from app.page.picture import MOST_ROWS, Moment, picture
from app.page.verdict import Level, verdict
from app.page.words import age, clock_time, duration, failure, failures
from app.routing.aliases import Alias
from app.routing.catalogue import Model
from app.routing.conditions import QUIET, Conditions
from app.routing.outcomes import Failure
from app.routing.ranking import UtilizationRow
from app.routing.view import Views
from app.seen.history import ModelSeen, Seen

NOW = 1.7e9
WELL = {"feeds": [], "aliases": [], "models": [], "requests": {"by_status": {}}}


def views(names, pause=lambda _: None, /, **aliases):
    """Return views with these chutes, the first the best."""
    made = Views(lambda: 100.0, lambda view: None,
                 {name: Alias(name, **filters) for name, filters in aliases.items()},
                 lambda: pause(None))
    made.take_models(map(Model, names))
    made.take_rows([UtilizationRow(name, max(1, 1000 - place), utilization_5m=0.25)
                    for place, name in enumerate(names)])
    return made


def shown(names=("a", "b"), *, models=None, slices=(), recent=(), changes=(), failed=None,
          conditions=QUIET, **aliases):
    """Return the picture of a router."""
    seen = Seen(models or {}, slices, 0, 0, recent, changes, failed or {})
    return picture(Moment(load_config({}), views(names, **aliases or {"all": {}}).current, seen,
                          conditions, 130.0, NOW, NOW - 3700))


def wrong(picture, not_ready=None):
    return [f"{each.name} {each.says}".strip() for each in verdict(picture, not_ready).wrong]


def test_a_chute_is_shown_with_its_parts_and_its_moment():
    """008-R9"""
    conditions = Conditions(cooling={"a": 12.0}, open_requests={"a": 3})
    [alias] = shown(conditions=conditions, tiered={"tiers": (("b",), ("*",))})["aliases"]
    second, first = alias["candidates"][1], alias["candidates"][0]
    assert (first["model"], first["tier"], first["cooling_s"], first["open"]) == ("b", 0, 0.0, 0)
    assert second == {
        "model": "a", "score": 750.0, "instances": 1000, "utilization": 0.25, "tier": 1,
        "parts": {"free": 750.0, "scalable": 0.0, "rate_limited": 0.0}, "fit": "yes",
        "missing": (), "cooling_s": 12.0, "in_band": False, "open": 3}


def test_candidates_stand_in_the_order_in_which_a_request_would_try_them():
    """008-R9"""
    drawn = shown("abcd", conditions=Conditions(cooling={"a": 12.0, "c": 1.0}))
    [alias] = drawn["aliases"]
    assert [each["model"] for each in alias["candidates"]] == ["b", "d", "a", "c"]
    assert [each["cooling_s"] for each in alias["candidates"]] == [0.0, 0.0, 12.0, 1.0]


def test_before_anything_was_fetched_there_is_a_picture_too():
    """008-R9"""
    seen = Seen({}, [], 0, 0, [], [], {})
    empty = Views(lambda: 0.0, lambda view: None).current
    drawn = picture(Moment(load_config({}), empty, seen, QUIET, 1.0, NOW, NOW))
    assert [feed["age_s"] for feed in drawn["feeds"]] == [None, None]
    assert "missing" in document(json.loads(json.dumps(drawn)), "Nothing is here.", NOW)


def test_what_is_too_much_is_left_out_and_counted():
    """008-R10, 008-R15"""
    many = {f"m{place}": ModelSeen(statuses={"200": place}) for place in range(300)}
    drawn = shown([f"c{place}" for place in range(900)], models=many,
                  changes=[(NOW, "x", "gone")] * 1000)
    [alias] = drawn["aliases"]
    assert alias["count"] == 900
    assert len(alias["candidates"]) == len(drawn["models"]) == len(drawn["catalogue"]) == MOST_ROWS
    assert drawn["models"][0]["model"] == "m299"
    html = document(drawn, None, NOW)
    assert "860 more chutes are not shown." in html and "60 more models" in html
    assert html.count("<tr") == 40 + 40 + 2


def test_aliases_of_the_same_chutes_share_a_table():
    """008-R10"""
    html = document(shown(one={}, other={}, third={"exclude": ("a",)}), None, NOW)
    assert html.count("<details id=\"pool-") == 2
    assert "<bdi>one</bdi>, <bdi>other</bdi>" in html


@pytest.mark.parametrize("statuses, level", [
    ({}, Level.WELL), ({"200": 100}, Level.WELL), ({"200": 4, "404": 96}, Level.WELL),
    ({"200": 995, "502": 5}, Level.WELL), ({"200": 98, "502": 2}, Level.TROUBLE),
    ({"200": 95, "503": 5}, Level.BAD), ({"200": 1, "504": 1}, Level.WELL)])
def test_errors_are_judged_by_their_share(statuses, level):
    """008-R11"""
    assert verdict(WELL | {"requests": {"by_status": statuses}}, None).level is level


@pytest.mark.parametrize("answers, failed, fails", [
    (0, 0, False), (100, 0, False), (0, 2, False), (0, 3, True), (12, 3, True), (13, 3, False),
    (100, 24, False)])
def test_a_model_fails_when_enough_of_its_attempts_do(answers, failed, fails):
    """008-R11"""
    seen = ModelSeen(statuses={"200": answers}, outcomes={"upstream_503": failed, "abandoned": 9})
    drawn = shown(models={"a": seen})
    assert wrong(drawn) == [f"a fails: {failed} × 503 in {answers + failed} attempts."] * fails
    assert verdict(drawn, None).level is (Level.TROUBLE if fails else Level.WELL)


def test_failures_of_the_edge_are_told_of_the_edge_and_of_no_model():
    """008-R11"""
    models = {name: ModelSeen(statuses={"200": 4}, outcomes={"upstream_connect_error": 2})
              for name in ("a", "b")}
    assert wrong(shown(models=models)) == [
        "The upstream can hardly be reached, whatever the model: 4 × no connection in 12 attempts."]
    assert wrong(shown(models=dict([models.popitem()]))) == []


def test_a_cooling_model_is_told_in_words():
    """008-R11"""
    seen = ModelSeen(outcomes={"upstream_header_timeout": 3})
    drawn = shown(models={"a": seen}, conditions=Conditions(cooling={"a": 11.6}))
    assert wrong(drawn) == ["a is cooling for 12 s more: 3 × no headers in 3 attempts."]
    assert "cooling for 12 s more: 3 × no headers</strong>" in document(drawn, None, NOW)


def test_a_cooling_model_behind_all_that_is_shown_is_shown_too():
    """008-R10, 008-R11"""
    names, cooling = [f"c{place}" for place in range(900)], {"c7": 11.6, "listed": 3.0}
    seen = {name: ModelSeen(outcomes={"upstream_header_timeout": 3}) for name in cooling}
    many = {f"m{place}": ModelSeen(statuses={"200": 9}) for place in range(300)}
    drawn = shown(names, models=many | seen, conditions=Conditions(cooling=cooling))
    [alias] = drawn["aliases"]
    assert len(alias["candidates"]) == MOST_ROWS + 1
    assert alias["candidates"][-1]["model"] == "c7"
    # Those with the most requests stay: they tell how well the router is.
    assert [model["model"][0] for model in drawn["models"]] == ["m"] * MOST_ROWS + ["c", "l"]
    assert wrong(drawn) == ["c7 is cooling for 12 s more: 3 × no headers in 3 attempts.",
                            "listed is cooling for 3 s more: 3 × no headers in 3 attempts."]
    html = document(drawn, None, NOW)
    assert "cooling for 12 s more: 3 × no headers</strong>" in html
    assert "859 more chutes are not shown." in html


def test_an_alias_whose_first_model_fails_or_cools_says_so():
    """008-R11"""
    seen = ModelSeen(outcomes={"upstream_503": 5})
    drawn = shown(models={"a": seen}, conditions=Conditions(cooling={"b": 1.0}))
    html = document(drawn, None, NOW).partition('class="aliases">')[2].partition("</dl>")[0]
    assert re.sub("<.*?>", "", html).split() == "all first a fails, then b cooling".split()


def test_of_many_models_that_fail_only_the_first_are_named():
    """008-R11"""
    models = {f"m{place}": ModelSeen(outcomes={"upstream_503": 9}) for place in range(8)}
    assert len(wrong(shown(models=models))) == 6
    assert wrong(shown(models=models))[-1] == "3 more models fail."


def test_what_is_bad_stands_before_what_is_trouble():
    """008-R11"""
    drawn = shown(failed={"models": (NOW - 1, "status 500")}, all={}, none={"exclude": ("*",)})
    assert wrong(drawn) == ["none has no model: whoever asks for it gets a 503.",
                            "The models feed cannot be fetched: status 500. What is in use is "
                            "30 s old."]
    assert verdict(drawn, None).level is Level.BAD
    assert wrong(drawn, "It ends.")[0] == "It is not ready. It ends."


def test_a_failure_that_a_fetch_has_mended_is_history():
    """008-R11"""
    drawn = shown(failed={"models": (NOW - 60, "status 500")})
    assert wrong(drawn) == [] and "It last failed at" in document(drawn, None, NOW)


def test_every_failure_has_words():
    """008-R11"""
    said = [failure(each.reason) for each in Failure]
    assert not any("_" in words or "upstream" in words for words in said)
    assert failure("something_new") == "something new"
    assert failures({"upstream_503": 1, "upstream_header_timeout": 1200}) == (
        "1,200 × no headers, 1 × 503")


@pytest.mark.parametrize("seconds, text", [
    (-1, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
    (3660, "1 h 1 min"), (90000, "1 d 1 h"), (86400 * 400, "400 d")])
def test_a_span_of_time_has_two_units(seconds, text):
    """008-R11"""
    assert age(seconds) == text


def test_short_times_are_said_in_their_unit():
    """008-R11"""
    assert [duration(ms) for ms in (None, 0.4, 140, 8200, 90_000)] == [
        "–", "0 ms", "140 ms", "8.2 s", "1 min 30 s"]
    assert clock_time("2026-11-29T10:20:30.123+00:00") == "10:20:30"


LINE = {"time": "2026-11-29T10:20:30.123+00:00", "status": 200, "mode": "alias", "asked": "x",
        "attempts": [], "code": "", "ended": "complete", "cut_cause": "", "duration_ms": 5.0}
HOSTILE = ["<script>alert(1)</script>", "\"' onload=alert(1) x='", "</style></script><svg>",
           "\u202eevil\u2066", "{{ 713*7 }}", "&amp;", "y" * 4000]


def test_whatever_a_name_is_it_is_text_in_an_element_of_its_own():
    """008-R14"""
    models = {name: ModelSeen(outcomes={"upstream_503": 5}) for name in HOSTILE}
    recent = [LINE | {"asked": name, "attempts": [
        {"model": name, "outcome": "200", "detail": name, "ms": 1.0}]} for name in HOSTILE]
    html = document(shown(HOSTILE, models=models, recent=recent,
                          changes=[(NOW, name, "gone") for name in HOSTILE],
                          failed={"models": (NOW, HOSTILE[0])},
                          **{name: {} for name in HOSTILE}), HOSTILE[0], NOW)
    assert html.count("<script") == html.count("</script") == html.count("</style") == 1
    assert "<svg>" not in html and "onload=alert(1) x='" not in html and "4991" not in html
    outside = re.sub(r"<bdi[^>]*>[^<]*</bdi>", "", html)
    assert "\u202e" not in outside and "y" * 4000 not in outside


def colours(dark):
    """Return the colours of a scheme by name."""
    light, _, rest = STYLE.partition("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", light))
    if dark:
        other = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", rest))
        assert other.keys() == found.keys()
        found = other
    return found


def luminance(colour):
    """Return the relative luminance of a colour; WCAG 2.2."""
    parts = [int(colour[place:place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
              for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


GROUNDS = ("ground", "card", "ok-ground", "warn-ground", "bad-ground")
INKS = {"text": GROUNDS, "quiet": ("ground", "card"), "ok": ("card", "ok-ground"),
        "warn": ("card", "warn-ground", "bad-ground"), "bad": ("card", "bad-ground")}


@pytest.mark.parametrize("dark", [False, True])
def test_every_ink_can_be_read_on_every_ground_it_is_used_on(dark):
    """008-R12"""
    scheme = colours(dark)
    low = {(ink, ground): contrast(scheme[ink], scheme[ground])
           for ink, grounds in INKS.items() for ground in grounds}
    assert min(low.values()) >= 4.5, low
    # Bars against their track, and the outline of what is focused.
    shapes = itertools.product(("busy", "bad"), ("track", "card"))
    for one, other in (*shapes, ("link", "card"), ("link", "ground")):
        assert contrast(scheme[one], scheme[other]) >= 3, (one, other)


def test_no_style_or_script_stands_where_the_policy_would_not_let_it():
    """008-R13"""
    html = document(shown(models={"a": ModelSeen(outcomes={"upstream_503": 5})}), None, NOW)
    assert not re.search(r"\sstyle=|\son\w+=|javascript:|http:|https:(?!//www\.w3)",
                         html.replace("http://www.w3.org/2000/svg", "").partition(
                             "<dl class=\"configuration\">")[0])
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_others_run_while_a_large_picture_is_made():
    """008-R15"""
    paused, aliases = [], {"one": {}, "other": {"exclude": ("c1*",)}}
    many = views([f"c{place}" for place in range(20_000)], paused.append, **aliases)
    seen, before = Seen({}, [], 0, 0, [], [], {}), len(paused)
    picture(Moment(load_config({}), many.current, seen, QUIET, 1.0, time.time(), 1.0),
            lambda: paused.append(None))
    assert before >= 2 * (20_000 // 1024) and len(paused) - before == len(aliases)

"""Feeds that are large, odd or changed, and how soon a failed fetch is tried again."""

import gc
import itertools
import json
import math
import os
import re
import signal
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.control import documents
from app.control.changes import CatalogueChanges
from app.control.documents import _FEW_COMMAS, MAX_ENTRIES, _bounded
from app.control.feeds import Feed, FeedSource
from app.control.saved import SavedFeed
from app.control.schemas import parse_models, parse_utilization
from app.errors import FetchFailed
from app.eventloop import pause
from app.routing.aliases import BUILT_IN, Alias
from app.routing.catalogue import Model
from app.routing.listing import listing
from app.routing.conditions import QUIET, Conditions
from app.routing.needs import Needs
from app.routing.view import Views
from tests.support.feeds import models_feed, utilization_row

URL = "http://feed.test/document"
LIMIT = 8 * 1024 * 1024
# What the event loop may be held for is 50 ms; a slow machine may take four times as long.
MOST_S = 4 * 0.05


def dumped(document):
    return json.dumps(document).encode()


class Stopwatch:
    """Stands in for the pause; measures the processor time between two of them."""

    def __init__(self):
        self.longest_s, self.last, self.turns = 0.0, time.thread_time(), 0

    def __call__(self):
        now, self.turns = time.thread_time(), self.turns + 1
        self.longest_s, self.last = max(self.longest_s, now - self.last), now


def filled(start, item, end):
    """Return a document of nearly 8 MiB that repeats one item."""
    return start + item * ((LIMIT - len(start) - len(end)) // len(item)) + end


GOOD_ROW = dumped(utilization_row("good"))
GOOD_MODEL = b'{"id": "good"}'
LARGE = {
    "numbers": filled(b"[", b"1,", GOOD_ROW + b"]"),
    "rows": filled(b"[", b'{"name":"x"},', GOOD_ROW + b"]"),
    "arrays": filled(b"[", b"[],", GOOD_ROW + b"]"),
    "one row with a long array": filled(b"[" + GOOD_ROW + b',{"a":[', b"[],", b"1]}]"),
    "one row with many keys": filled(b"[" + GOOD_ROW + b",{", b'"a":1,', b'"b":1}]'),
    "one string": filled(b"[" + GOOD_ROW + b',{"name":"', b"a", b'"}]'),
    "escapes": filled(b"[" + GOOD_ROW + b',{"name":"', b"\\n", b'"}]'),
    "brackets": filled(b"", b"[", b""),
    "deep and wide": filled(b"[" + GOOD_ROW + b",[" + b"[" * 2000, b"[],",
                            b"0" + b"]" * 2001 + b"]"),
    "deep again and again": filled(b"[" + GOOD_ROW + b",[", b"[" * 2000 + b"]" * 2000 + b",",
                                   b"0]]"),
    "not finite": filled(b"[" + GOOD_ROW + b",[", b"NaN,", b"1]]"),
    "not finite at the end": filled(b"[" + GOOD_ROW + b",[", b"1,", b"NaN]]"),
    "lone surrogates": filled(b"[" + GOOD_ROW + b',{"a":"', b"\\udfff", b'"}]'),
    "quotes before a lone surrogate": filled(b"[" + GOOD_ROW + b",[", b'"",', b'"\\ud800"]]'),
    "spaces": filled(b"[" + GOOD_ROW, b" ", b"]"),
    "no JSON": filled(b"", b"x", b""),
}


@pytest.mark.parametrize("name", LARGE)
def test_whatever_a_feed_of_8_mib_holds_the_event_loop_is_not_held_for_long(name):
    """003-R13"""
    for document, parse in ((LARGE[name], parse_utilization),
                            (b'{"data":' + LARGE[name].replace(GOOD_ROW, GOOD_MODEL) + b"}",
                             parse_models)):
        stopwatch = Stopwatch()
        try:
            content, _ = parse(document, stopwatch)
            assert len(content) == 1
        except FetchFailed as error:
            assert str(error) in ("not JSON", f"more than {MAX_ENTRIES} entries")
        stopwatch()
        assert stopwatch.longest_s < MOST_S


ALIASES = {**BUILT_IN, **{name: Alias(name, tiers, exclude, min_context=5000)
                          for name, tiers, exclude in (
    ("globs", (("*-1*", "maker/*"), ("*",)), ("*Guard*", "*ocr*")),
    ("tiers", tuple((f"*{number}",) for number in range(50)), ()))}}


@pytest.mark.parametrize("padding", [0, 250])
def test_the_largest_feeds_are_read_ranked_and_used_in_slices(tmp_path, padding):
    """003-R13, 003-R34"""
    names = [f"maker/Model-{number}" for number in range(MAX_ENTRIES)]
    rows = [{"name": name, "active_instance_count": 1 + number % 9, "utilization_5m": 0.5,
             "unread": "x" * padding} for number, name in enumerate(names)]
    entries = [{"id": name, "context_length": 4096 + number, "supported_features": ["tools"],
                "unread": "x" * padding} for number, name in enumerate(names)]
    stopwatch = Stopwatch()
    views = Views(lambda: 0.0, lambda view: None, ALIASES, stopwatch)
    models, _ = parse_models(dumped({"data": entries}), stopwatch)
    CatalogueChanges(views, tmp_path / "catalogue.json").take(models, 0.0)
    stopwatch()
    content, _ = parse_utilization(dumped(rows), stopwatch)
    views.take_rows(content)
    stopwatch()
    view = views.current
    # All pools are there: nothing is left to be done for them.
    turns, pools = stopwatch.turns, [view.pool(alias) for alias in ALIASES]
    assert [len(pool.members) for pool in pools] == [MAX_ENTRIES] * 2 + [MAX_ENTRIES - 904] * 2
    assert stopwatch.turns == turns
    for alias in ALIASES:
        lineup = view.lineup(alias, Needs(frozenset({"tools"}), context=9000))
        stopwatch()
        cooling = Conditions(dict.fromkeys(names[::40], 1.0))
        for client_key, conditions in itertools.product((None, "key"), (QUIET, cooling)):
            order = lineup.order(conditions, client_key)
            assert len(order.names) == len(view.pool(alias).members)
            stopwatch()
    assert len(listing(view, view.catalogue, stopwatch)) > MAX_ENTRIES * (padding + 40)
    stopwatch()
    assert stopwatch.longest_s < MOST_S


def test_rows_and_what_is_made_of_them_are_nothing_to_the_garbage_collector():
    """003-R34"""
    (row,), _ = parse_utilization(dumped([utilization_row("a")]), pause)
    views = Views(lambda: 0.0, lambda view: None)
    views.take_models([Model("a")])
    views.take_rows([row])
    (candidate,) = views.current.snapshot.ranking.candidates
    (member,) = views.current.pool("chutesai/AutoPilot").members
    assert not any(map(gc.is_tracked, (row, candidate, candidate.parts, member)))


def test_what_bounds_the_entries_of_a_feed_is_made_for_very_large_ones_only():
    """003-R13"""
    _bounded.cache_clear()
    padded = {**utilization_row("a"), "more": [0] * 300}
    for rows, made in ((500, 0), (5_000, 1)):
        (first, *_, last), dropped = parse_utilization(dumped([padded] * rows), pause)
        assert (first.name, last.name, dropped) == ("a", "a", 0)
        assert _bounded.cache_info().currsize == made


@pytest.mark.parametrize("commas", [_FEW_COMMAS, _FEW_COMMAS + 1])
@pytest.mark.parametrize("document", [b'"%b"', b'{"":"%b"}', b'{"":{"":[["%b"]]}}'])
def test_a_feed_that_is_no_array_is_a_failed_refresh_whatever_its_size(commas, document):
    """003-R13"""
    with pytest.raises(FetchFailed, match="not an array"):
        parse_utilization(document % (b"," * commas), pause)


def test_one_entry_more_is_a_failed_refresh():
    """003-R13"""
    one_more = MAX_ENTRIES + 1
    with pytest.raises(FetchFailed, match="more than 20000 entries"):
        parse_utilization(dumped([utilization_row("a")] * one_more), pause)
    with pytest.raises(FetchFailed, match="more than 20000 entries"):
        parse_models(dumped(models_feed(["a"] * one_more)), pause)


def test_an_entry_beyond_64_kib_costs_itself_only():
    """003-R13"""
    large = utilization_row("large") | {"more": "x" * 65_536}
    rows, dropped = parse_utilization(dumped([large, utilization_row("good")]), pause)
    assert ([row.name for row in rows], dropped) == (["good"], 1)


def test_of_two_feeds_that_come_at_once_the_view_has_both():
    """003-R1, 003-R13"""
    def come_between():
        if views.current.catalogue is None and not came:
            came.append(1)
            views.take_models([Model("m511")])

    came = []
    views = Views(lambda: 0.0, lambda view: None, pause=come_between)
    rows, _ = parse_utilization(dumped([utilization_row(f"m{n}") for n in range(512)]), pause)
    views.take_rows(rows)
    assert came and views.current.catalogue.ids == {"m511"}
    assert [c.name for c in views.current.snapshot.ranking.candidates] == ["m511"]


def without(key):
    return {name: value for name, value in utilization_row("a").items() if name != key}


@pytest.mark.parametrize("entries, why", [
    ([without("active_instance_count")] * 3, "active_instance_count missing in 3 of 3"),
    ([without("name"), without("name") | {"active_instance_count": "4"}],
     "name missing in 2 of 2, active_instance_count of a wrong type or value in 1 of 2"),
    ([None, "row"], "not an object in 2 of 2"),
    ([{"name": "x" * 70_000}], "more than 65536 bytes in 1 of 1"), ([], "")])
def test_a_changed_utilization_feed_is_said_by_the_key_and_how_often(entries, why):
    """003-R3"""
    with pytest.raises(FetchFailed) as caught:
        parse_utilization(dumped(entries), pause)
    assert str(caught.value) == "no usable row" + (f": {why}" if why else "")


@pytest.mark.parametrize("entries, why", [
    ([{"name": "a"}] * 2, "id missing in 2 of 2"),
    ([{"id": 5}, {}], "id of a wrong type or value in 1 of 2, id missing in 1 of 2"),
    (["a"], "not an object in 1 of 1"), ([], "")])
def test_a_changed_models_feed_is_said_by_the_key_and_how_often(entries, why):
    """003-R9"""
    with pytest.raises(FetchFailed) as caught:
        parse_models(dumped({"data": entries}), pause)
    assert str(caught.value) == "no model" + (f": {why}" if why else "")


@pytest.mark.parametrize("count, taken", [(4.0, 4), (0.0, 0), (4, 4), (4.5, None), ("4", None)])
def test_a_count_written_as_a_fraction_is_a_count(count, taken):
    """003-R3"""
    rows, _ = parse_utilization(dumped(
        [utilization_row("a") | {"active_instance_count": count}, utilization_row("b")]), pause)
    assert [row.active_instance_count for row in rows if row.name == "a"] == [
        taken] * (taken is not None)
    assert all(isinstance(row.active_instance_count, int) for row in rows)


def test_a_nan_costs_its_row_and_a_byte_order_mark_nothing():
    """003-R3"""
    rows = [utilization_row("bad") | {"utilization_5m": math.nan},
            utilization_row("fine") | {"unread": [math.inf, -math.inf]},
            utilization_row("big") | {"unread": 10**400}]
    for document in (dumped(rows), b"\xef\xbb\xbf" + dumped(rows),
                     json.dumps(rows, separators=(",", ":")).encode()):
        content, dropped = parse_utilization(document, pause)
        assert ([row.name for row in content], dropped) == (["fine", "big"], 1)


def test_a_lone_surrogate_anywhere_is_replaced_and_costs_nothing():
    """003-R32"""
    rows, dropped = parse_utilization(
        b'[{"name": "a", "active_instance_count": 1, "tagline": "\\ud800"}, '
        b'{"name": "b", "active_instance_count": 1, "\\uDFFF": [NaN]}]', pause)
    assert ([row.name for row in rows], dropped) == (["a", "b"], 0)
    models, dropped = parse_models(
        b'{"\\ud800": "\\ud83d", "data": [{"id": "a", "description": "\\udC00 \\ud83d\\ude00 '
        b'\\\\ud800 \\ud800\\n\\ud800\\u0041"}, {"id": "\\ud800"}]}', pause)
    assert dropped == 1
    assert [model.entry for model in models] == [
        b'{"id": "a", "description": "\\ufffd \\ud83d\\ude00 '
        b'\\\\ud800 \\ufffd\\n\\ufffd\\u0041"}']


@pytest.mark.parametrize("before", ["", " ", "\n\t", "  \r\n"])
@pytest.mark.parametrize("bare", ["NaN", "Infinity", "-Infinity"])
def test_what_is_not_finite_is_null_in_an_entry_and_stays_within_strings(before, bare):
    """003-R32"""
    said = rf'"says": "Paris, {bare}: {bare}, \"[{bare}\\", "{bare}": "{bare}"'
    entry = '{"id": "a", "x":%s, "y": [%s,%s], %s}'
    written = entry % (before + bare, before + bare, before + bare, said)
    (model,), _ = parse_models(f'{{"data": [{written}]}}'.encode(), pause)
    null = before + "null"
    assert model.entry.decode() == entry % (null, null, null, said)


FRAGMENTS = st.lists(st.sampled_from([
    "\\\\", '\\"', "\\n", "\\ud83d", "\\ude00", "\\uDEAD", "\\u0041", "d800", "u", "NaN",
    "-Infinity", ":", ",", "[", "\u00e9", " "])).map("".join)
VALUES = FRAGMENTS.map('"{}"'.format) | st.sampled_from(["NaN", "Infinity", "-Infinity", "-1"])


@given(st.lists(st.tuples(st.sampled_from(["", " ", "\n  "]), VALUES).map("".join), max_size=9),
       st.integers(0, 12))
def test_an_entry_is_json_and_holds_what_it_held_but_for_what_is_replaced(values, padding):
    """003-R32"""
    written = f'{{"id": "a", {" " * padding}"x": [{",".join(values)}]}}'
    with pytest.MonkeyPatch.context() as patch:
        # Windows then end within tokens.
        patch.setattr(documents, "_WINDOW_BYTES", 13)
        (model,), _ = parse_models(f'{{"data": [{written}]}}'.encode(), pause)
    held = json.dumps(json.loads(written, parse_constant=lambda _: None), ensure_ascii=False)
    assert msgspec.json.decode(model.entry) == json.loads(
        re.sub("[\ud800-\udfff]", "\ufffd", held))


@pytest.mark.parametrize("deep", [
    b"[" * 9_000 + b"]" * 9_000, b'{"a":[' * 2_000 + b"1" + b"]}" * 2_000,
    b'[{"]":"\\"]}", "x":' * 2_000 + b'"NaN"' + b"}, 1]" * 2_000])
@pytest.mark.parametrize("window", [13, 64 * 1024])
def test_a_value_nested_too_deeply_costs_itself(monkeypatch, deep, window):
    """003-R32: wherever a window ends."""
    monkeypatch.setattr(documents, "_WINDOW_BYTES", window)
    models, dropped = parse_models(
        b'{"x": %s, "data": [{"id": "a"}, {"id": "b", "x": %s, "context_length": 7}, '
        b'{"id": "c", "x": "[[{"}]}' % (deep, deep), pause)
    assert ([(model.id, model.context_length) for model in models], dropped) == (
        [("a", None), ("b", 7), ("c", None)], 0)
    assert models[2].entry == b'{"id": "c", "x": "[[{"}'
    json.loads(models[1].entry)
    rows, dropped = parse_utilization(b"[%s, %s, %s]" % (
        GOOD_ROW, GOOD_ROW.replace(b"{", b'{"x": ' + deep + b",", 1), deep), pause)
    assert ([row.name for row in rows], dropped) == (["good", "good"], 1)


@pytest.mark.parametrize("depth", [900, 1100])
def test_what_is_nested_about_as_deep_as_can_be_read_costs_no_other_entry(depth):
    """003-R32"""
    deep = b"[" * depth + b"]" * depth
    models, _ = parse_models(b'{"data": [{"id": "a"}, {"id": "b", "x": %s}]}' % deep, pause)
    assert models[0].id == "a"


@pytest.mark.parametrize("document", [b"[" * 5000, b"]" * 5000, b"[" * 5000 + b'"', b"[" * 999,
                                      b"[" * 500 + b"[]," + b"[" * 5000])
def test_brackets_alone_are_no_feed(document):
    """003-R32"""
    for parse in (parse_models, parse_utilization):
        with pytest.raises(FetchFailed):
            parse(document, pause)


def test_bytes_that_are_no_text_cost_their_entry():
    """003-R32"""
    with pytest.raises(FetchFailed, match="no model: invalid JSON in 1 of 1"):
        parse_models(b'{"data": [{"id": "b", "x": "\xff"}]}', pause)


def test_a_name_has_512_characters_at_most():
    """003-R33"""
    fits, long = "x" * 512, "x" * 513
    rows, dropped = parse_utilization(
        dumped([utilization_row(fits), utilization_row(long)]), pause)
    assert ([row.name for row in rows], dropped) == ([fits], 1)
    models, dropped = parse_models(dumped({"data": [{"id": fits}, {"id": long}]}), pause)
    assert ([model.id for model in models], dropped) == ([fits], 1)


class Outage:
    """A feed that cannot be fetched, with a clock that jumps to each next look."""

    def __init__(self, interval_s, jitter=0):
        self.now, self.fetches, self.works = 100.0, [], False
        source = FeedSource("models", URL, interval_s, parse_models, lambda *_: None)
        self.feed = Feed(source, self.fetch, None, lambda: self.now)
        self.job = self.feed.job()
        self.job._jitter = lambda: jitter

    def fetch(self):
        self.fetches.append(self.now)
        if not self.works:
            raise FetchFailed("down")
        return dumped(models_feed(["a"]))

    def waits(self, count):
        """Run the job until it has fetched so many times more; return the waits between."""
        most = len(self.fetches) + count
        while len(self.fetches) < most:
            self.feed.refresh()
            self.now += self.job.next_wait_s()
        return [round(b - a, 3) for a, b in zip(self.fetches, self.fetches[1:])]


@pytest.mark.parametrize("interval_s, waits", [
    (300.0, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]), (5.0, [1, 2, 4, 5, 5]),
    (2.0, [0.5, 1, 2, 2]), (0.1, [0.025, 0.05, 0.1, 0.1])])
def test_a_failed_fetch_is_tried_again_soon_and_then_ever_later(interval_s, waits):
    """003-R14"""
    # A look at the shared file comes first where it is due about then.
    assert Outage(interval_s).waits(len(waits) + 1) == pytest.approx(waits, rel=0.13)


@pytest.mark.parametrize("jitter", [-1, 1])
def test_waits_after_failures_vary_by_a_tenth_too(jitter):
    """003-R14, 003-R7"""
    assert Outage(300.0, jitter).waits(3) == [1 + 0.1 * jitter, 2 + 0.2 * jitter]


def test_after_a_success_the_interval_holds_again_and_the_next_failure_is_a_first_one():
    """003-R14"""
    outage = Outage(300.0)
    outage.waits(5)
    outage.works = True
    outage.waits(2)
    assert outage.fetches[-1] - outage.fetches[-2] == pytest.approx(300)
    outage.works = False
    assert outage.waits(2)[-1] == 1.0


def test_a_fetch_that_raises_anything_is_tried_again_as_soon(caplog):
    """003-R14"""
    outage = Outage(300.0)
    outage.feed._fetch = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        outage.feed.refresh()
    assert outage.job.next_wait_s() == 1.0


@pytest.mark.parametrize("first_line", [b"null", b"5", b"true", b'"text"', b"[]", b"[1]", b"1e999",
                                        b'{"fetched_at": {}}', b'{"fetched_at": null}', b"\xff"])
def test_a_saved_feed_whose_header_is_none_does_not_keep_from_fetching(tmp_path, first_line):
    """003-R11"""
    (tmp_path / "models.feed").write_bytes(first_line + b"\n{}")
    stored = []
    source = FeedSource("models", URL, 10.0, parse_models, lambda *content: stored.append(content))
    feed = Feed(source, lambda: dumped(models_feed(["a"])),
                SavedFeed(tmp_path, "models", URL, 10_000), clock=lambda: 0.0)
    assert feed.refresh() and [(m.id, age_s) for (m,), age_s in stored] == [("a", 0.0)]


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    """003-R11"""
    saved = SavedFeed(tmp_path, "models", URL, 10_000)
    # As long as a process has the lock it is still writing.
    pid = os.fork()
    if not pid:
        os.replace = lambda *_: signal.pause()
        saved.write(b"unfinished", 0.0)
        os._exit(1)
    try:
        until_unfinished(tmp_path)
        saved.write(b"one", 0.0)
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    (tmp_path / "models.txt").write_text("not ours")
    (tmp_path / "others.0123456789abcdef").write_text("another feed's")
    saved.write(b"two", 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "models.feed", "models.txt", "others.0123456789abcdef"]


def until_unfinished(folder):
    give_up_at = time.monotonic() + 20
    while not any(path.stat().st_size > 10 for path in folder.iterdir()):
        assert time.monotonic() < give_up_at
        time.sleep(0)


@pytest.mark.parametrize("document, why", [
    (b'[{"name":"\xff\xfe secret"}]', "no usable row: invalid JSON in 1 of 1"),
    (b'[{"\xff":1}]', "no usable row: invalid JSON in 1 of 1"), (b"\xff[]", "not JSON")])
def test_bytes_that_are_no_utf_8_are_not_told_of_by_their_value(document, why):
    """003-R3, 007-R11"""
    with pytest.raises(FetchFailed) as caught:
        parse_utilization(document, pause)
    assert str(caught.value) == why
    with pytest.raises(FetchFailed) as caught:
        parse_models(b'{"data":' + document + b"}", pause)
    assert str(caught.value) in (why.replace("usable row", "model"), why)

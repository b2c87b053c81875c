"""Feeds and their refresh, in process: `responses` answers instead of the network."""

import dataclasses
import gzip
import itertools
import json
import zlib

import msgspec
import gevent
import pytest
import requests
import responses

from app.control.changes import Eligibility
from app.control.feed_client import feed_fetcher
from app.control.feeds import Feed, FeedSource
from app.control.saved import SavedFeed
from app.control.scheduler import PeriodicJob
from app.control.schemas import parse_models, parse_utilization
from app.dialing.dialer import Dialer
from app.dialing.names import Names
from app.errors import FetchFailed
from app.eventloop import Event, pause
from app.routing.catalogue import Model
from app.routing.ranking import UtilizationRow
from app.routing.view import Views
from app.upstream.tls import trusting
from tests.support.feeds import (bare_entry, model_entry, models_feed, public_names,
                                 utilization_feed, utilization_row)

URL = "http://feed.test/document"


def dumped(document):
    return json.dumps(document).encode()


def ids(models):
    return frozenset(model.id for model in models)


def rows_of(*entries):
    rows, dropped = parse_utilization(dumped(list(entries)), pause)
    return [row.name for row in rows], dropped


def test_the_real_feeds_shape_and_size_is_read_whole():
    """003-R2"""
    pauses = []
    rows, dropped = parse_utilization(dumped(utilization_feed()), lambda: pauses.append(1))
    assert (len(rows), dropped) == (96, 0)
    assert {row.name for row in rows} == set(public_names())
    # One before the document is split, then one for each slice.
    assert 7 <= len(pauses) <= 20
    models, dropped = parse_models(dumped(models_feed(public_names())), pause)
    assert ([model.id for model in models], dropped) == (public_names(), 0)


def models_of(*entries):
    models, dropped = parse_models(b'{"data":[%s]}' % b",".join(entries), pause)
    return list(models), dropped


def test_of_a_models_entry_is_read_what_it_declares():
    """003-R20"""
    [model], _ = models_of(dumped(model_entry(
        "a-TEE", context_length=9, supported_features=["tools", "structured_output"])))
    assert (model.id, model.context_length, model.max_output_length) == ("a-TEE", 9, 65536)
    assert model.features == {"tools", "structured_output", "structured_outputs"}
    assert (model.inputs, model.confidential) == ({"text"}, True)
    [model], _ = models_of(dumped(bare_entry("b", max_model_len=7)))
    assert (model.context_length, model.features, model.inputs) == (7, None, None)


@pytest.mark.parametrize("key, bad", [
    ("context_length", "9"), ("context_length", 1.5), ("context_length", True),
    ("context_length", None), ("max_output_length", -1), ("supported_features", "tools"),
    ("supported_features", ["tools", 1]), ("input_modalities", {"text": 1}),
    ("confidential_compute", "yes"), ("confidential_compute", 1)])
def test_a_value_of_the_wrong_type_costs_that_value_and_not_the_entry(key, bad):
    """003-R20"""
    whole = {"id": "a", "context_length": 9, "max_output_length": 8, "supported_features": ["x"],
             "input_modalities": ["y"], "confidential_compute": True}
    models, dropped = models_of(dumped(whole), dumped({**whole, key: bad}))
    field = {"supported_features": "features", "input_modalities": "inputs",
             "confidential_compute": "confidential"}.get(key, key)
    assert dropped == 0 and getattr(models[0], field) is not None
    assert models[1] == dataclasses.replace(models[0], entry=models[1].entry, **{field: None})


@pytest.mark.parametrize("entry", [
    b'{"id":"a" , "x":1.10,"y":1e400,"z":"\\u00e9\\/"}', b'{ "id" : "a"}',
    b'{"id":"a","price":{"usd":0.080}}', '{"id":"a","text":"é"}'.encode()])
def test_an_entry_is_kept_as_it_came(entry):
    """003-R20"""
    models, dropped = models_of(entry, b'{"id":5}', b"7", b'{"id":"b"}')
    assert (models[0].entry, models[1].entry, dropped) == (entry, b'{"id":"b"}', 2)


def test_an_entry_with_a_nan_loses_it_and_costs_nothing_else():
    """003-R20"""
    models, dropped = models_of(b'{"id":"a","x":NaN}', b'{"id":"b","x":-Infinity}', b'{"id":"c"}')
    assert [json.loads(model.entry) for model in models] == [
        {"id": "a", "x": None}, {"id": "b", "x": None}, {"id": "c"}]
    assert dropped == 0


@pytest.mark.parametrize("bad", [
    {"name": None}, {"name": 5}, {"name": "中文/Model-TEE"}, {"name": "a\nb-TEE"}, {"name": ""},
    {"active_instance_count": "4"}, {"active_instance_count": 1.5},
    {"active_instance_count": -1}, {"active_instance_count": True},
    {"active_instance_count": None}, {"utilization_5m": float("nan")},
    {"utilization_5m": float("inf")}, {"utilization_1h": -0.1}, {"utilization_15m": "0.5"},
    {"rate_limit_ratio_5m": False}, {"scalable": "yes"}, {"scalable": 1},
    {"scale_allowance": [1]}, {"active_instance_count": 10**12}, {"utilization_current": 1e300},
    {"utilization_current": 10**400}])
def test_a_bad_row_is_dropped_and_counted_and_costs_no_other(bad):
    """003-R3"""
    row = utilization_row("bad") | bad
    assert rows_of(utilization_row("good"), row, utilization_row("fine")) == (
        ["good", "fine"], 1)


@pytest.mark.parametrize("odd", [
    {"utilization_current": None, "utilization_5m": None}, {"rate_limit_ratio_5m": None},
    {"utilization_5m": 7}, {"scale_allowance": None}, {"scale_allowance": 2.5},
    {"scalable": None}, {"new_key": {}}])
def test_odd_but_good_rows_are_kept(odd):
    """003-R2"""
    assert rows_of(utilization_row("odd") | odd) == (["odd"], 0)


@pytest.mark.parametrize("timestamp, expected", [
    ("2026-02-18T05:48:08.568123", 1771393688.568123), ("2026-02-18T05:48:08Z", 1771393688),
    ("2026-02-18T07:48:08+02:00", 1771393688), ("2026-02-18 05:48:08", 1771393688),
    ("0001-01-01T00:00:00+23:59", -62135683140), (None, None), ("", None), ("soon", None),
    (1771393688, None), ([], None), ("9" * 5000, None)])
def test_a_rows_timestamp_is_utc_where_it_names_no_zone_and_a_bad_one_costs_no_row(
        timestamp, expected):
    """003-R61"""
    row = utilization_row("a") | {"timestamp": timestamp}
    rows, dropped = parse_utilization(dumped([row]), pause)
    assert (rows[0].timestamp, dropped) == (expected, 0)


def test_rows_with_keys_missing():
    """003-R2, 003-R3"""
    assert rows_of({"name": "a", "active_instance_count": 1}, {"active_instance_count": 1},
                   {"name": "b"}, None, [], "row") == (["a"], 5)


@pytest.mark.parametrize("document", [
    b"", b"{}", b"[]", b"null", b"[1, 2]", b"[" * 100_000, b"\xff", dumped([{"name": 1}])])
def test_a_feed_without_a_usable_row_is_a_failed_refresh(document):
    """003-R3"""
    with pytest.raises(FetchFailed):
        parse_utilization(document, pause)


def test_a_feed_of_private_chutes_is_good_and_has_no_candidate():
    """003-R4"""
    assert parse_utilization(dumped([utilization_row("[private chute]")]), pause) == ((), 0)


@pytest.mark.parametrize("document", [
    b"", b"[]", b"{}", b'{"data":{}}', b'{"data":[]}', b'{"data":[{"id":""},{"id":1},{}]}',
    '{"data":[{"id":"中"}]}'.encode()])
def test_a_models_feed_without_a_model_is_a_failed_refresh(document):
    """003-R9"""
    with pytest.raises(FetchFailed):
        parse_models(document, pause)


def test_msgspec_and_the_standard_library_read_a_feed_alike():
    """003-R2"""
    document = dumped(utilization_feed())
    assert msgspec.json.decode(document) == json.loads(document)


@pytest.fixture
def fetch():
    return feed_fetcher(URL, proxy="", tls=trusting(""), dialer=Dialer(Names()), timeout_s=5,
                        max_bytes=1000)


@responses.activate
def test_a_fetch_sends_nothing_of_any_client_and_follows_nothing(fetch):
    """003-R10"""
    responses.get(URL, b"first", headers={"Set-Cookie": "a=b"})
    responses.get(URL, b"second")
    assert (fetch(), fetch()) == (b"first", b"second")
    for call in responses.calls:
        assert not {"Authorization", "Cookie"} & set(call.request.headers)


@pytest.mark.parametrize("answer, why", [
    ({"status": 500}, "status 500"), ({"status": 204}, "status 204"),
    ({"status": 302, "headers": {"Location": URL + "/elsewhere"}}, "status 302"),
    ({"body": b"x" * 1001}, "larger than 1000 bytes"),
    ({"body": b"x", "headers": {"Content-Encoding": "br"}}, "content coding 'br'"),
    ({"body": b"x", "headers": {"Content-Encoding": "identity, ZSTD"}}, "content coding 'zstd'"),
    ({"body": b"x", "headers": {"Content-Encoding": "\u00e9 " + "y" * 99}},
     "content coding '\\xe9 " + "y" * 18 + "'"),
    ({"body": requests.ConnectionError("10.1.2.3 refused")}, "ConnectionError")])
def test_whatever_is_no_plain_200_is_a_failed_fetch(fetch, answer, why):
    """003-R10"""
    with responses.RequestsMock() as mock, pytest.raises(FetchFailed) as caught:
        mock.get(URL, **answer)
        fetch()
    assert str(caught.value) == why


@responses.activate
@pytest.mark.parametrize("coding, encode", [
    ("gzip", gzip.compress), ("X-GZip", gzip.compress), ("deflate", zlib.compress),
    ("identity", bytes), ("", bytes)])
def test_codings_that_are_asked_for_are_read(fetch, coding, encode):
    """003-R10"""
    responses.get(URL, encode(b"document"), headers={"Content-Encoding": coding})
    assert fetch() == b"document"


def test_a_feed_keeps_what_it_had_and_tells_of_changes_once(caplog):
    """003-R7"""
    stored, documents = [], [dumped(models_feed(["a"])), b"junk", b"junk", dumped(models_feed("b"))]
    source = FeedSource("models", URL, 10.0, parse_models,
                        lambda content, age_s: stored.append(ids(content)))
    feed = Feed(source, lambda: documents.pop(0), None, itertools.count(step=10).__next__)
    with caplog.at_level("INFO"):
        assert [feed.refresh() for _ in range(4)] == [True, False, False, True]
    assert stored == [frozenset("a"), frozenset("b")]
    assert [record.message for record in caplog.records] == [
        "feed refresh fails", "feed refresh works again"]


def test_feeds_that_do_not_go_together_are_told_of_once_each_time(caplog):
    """003-R4"""
    eligibility = Eligibility()
    views = Views(lambda: 0.0, eligibility.look)
    rows = {name: UtilizationRow(name, count) for name, count in (
        ("a", 1), ("a ", 1), ("b ", 1), ("b", 0))}
    with caplog.at_level("INFO"):
        views.take_rows([rows["a "]])
        assert not caplog.records
        views.take_models(map(Model, "ab"))
        views.take_rows([rows["b "], rows["a "]])
        views.take_rows([rows["b"], rows["a"]])
        views.take_rows([rows["a"]])
        views.take_rows([rows["b"], rows["b "], rows["a "]])
        views.take_rows([rows["a"]])
        views.take_rows([])
    assert [(record.message, record.why) for record in caplog.records] == [
        ("no model is eligible", "1 not_allowlisted"), ("models are eligible again", ""),
        ("no model is eligible", "2 not_allowlisted, 1 no_instance"),
        ("models are eligible again", ""), ("no model is eligible", "all chutes are private")]


class Host:
    """A host's clocks and one saved feed for several workers."""

    def __init__(self, path):
        self.now, self.path, self.fetches, self.url = 1000.0, path, [], URL
        self.answer = dumped(models_feed(["a"]))

    def fetch(self):
        self.fetches.append(self.now)
        if self.answer is None:
            raise FetchFailed("down")
        return self.answer

    def worker(self):
        """Return a worker's feed and what it has stored, as (content, age in seconds)."""
        stored = []
        saved = SavedFeed(self.path.parent, "models", self.url, 10_000, lambda: 1.7e9 + self.now)
        source = FeedSource("models", self.url, 10.0, parse_models,
                            lambda content, age_s: stored.append((ids(content), age_s)))
        return Feed(source, self.fetch, saved, lambda: self.now), stored


def test_workers_share_what_one_has_fetched_and_each_fetches_when_the_others_do_not(tmp_path):
    """003-R12"""
    host = Host(tmp_path / "models.feed")
    (one, _), (two, stored) = host.worker(), host.worker()
    assert one.refresh() and two.refresh()
    assert host.fetches == [1000.0] and stored == [(frozenset("a"), 0.0)]
    host.now += 9.0
    host.answer = dumped(models_feed(["b"]))
    assert two.refresh()
    host.now += 1.0
    assert one.refresh()
    assert host.fetches == [1000.0, 1009.0]
    host.now += 9.0
    assert two.refresh() and len(host.fetches) == 3
    late, stored = host.worker()
    host.answer = None
    host.now += 2.0
    assert late.refresh()
    assert stored == [(frozenset("b"), 2.0)] and len(host.fetches) == 3


def test_of_two_documents_the_one_that_was_asked_for_last_counts(tmp_path):
    """003-R12: one that comes late is not newer than one that was asked for meanwhile."""
    host = Host(tmp_path / "models.feed")
    quick, theirs = host.worker()

    def fetch_slowly():
        host.now += 1.0
        host.answer = dumped(models_feed(["new"]))
        assert quick.refresh()
        host.now += 2.0
        return dumped(models_feed(["old"]))

    host.fetch = fetch_slowly
    slow, ours = host.worker()
    assert slow.refresh() and quick.refresh()
    assert ours == [(frozenset(["old"]), 3.0)]
    assert theirs == [(frozenset(["new"]), 0.0)]


def test_a_restart_while_the_feed_is_down_begins_with_what_was_saved_at_its_true_age(tmp_path):
    """003-R11"""
    host = Host(tmp_path / "models.feed")
    host.worker()[0].refresh()
    host.answer = None
    host.now += 500.0
    after, stored = host.worker()
    assert not after.refresh()
    assert stored == [(frozenset("a"), 500.0)]
    host.now -= 3000.0  # the wall clock was set back: from the future is as good as new
    again, stored = host.worker()
    again.refresh()
    assert stored == [(frozenset("a"), 0.0)]


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-1], lambda data: data + b" ", lambda data: data[40:],
    lambda data: data.replace(b'"feed": "models"', b'"feed": "others"'),
    lambda data: data.replace(b"a", b"b"), lambda data: b"\0" * len(data),
    lambda data: b"[]\n" + data, lambda data: b"5\n" + data, lambda data: b"{}\n{}",
    lambda data: b"[" * 1024 + b"\n",
    lambda data: data.replace(b'"fetched_at": 1', b'"fetched_at": 1' + b"0" * 400),
    lambda data: data.replace(b'"fetched_at": 1', b'"fetched_at": -Infinity, "x": 1'),
    lambda data: data + b"x" * 20_000])
def test_a_file_that_is_not_what_it_says_is_ignored_with_one_line(tmp_path, caplog, damage):
    """003-R11"""
    host = Host(tmp_path / "models.feed")
    host.worker()[0].refresh()
    host.path.write_bytes(damage(host.path.read_bytes()))
    host.answer = None
    feed, stored = host.worker()
    for _ in range(3):
        feed.refresh()
    assert not stored
    assert [r.message for r in caplog.records] == ["saved feed ignored", "feed refresh fails"]


def test_a_document_of_another_backend_is_none_of_ours(tmp_path):
    """003-R11"""
    host = Host(tmp_path / "models.feed")
    host.worker()[0].refresh()
    host.url = URL + "/of-another-backend"
    feed, stored = host.worker()
    host.answer = dumped(models_feed(["z"]))
    assert feed.refresh() and stored == [(frozenset("z"), 0.0)]


def test_a_worker_says_so_when_another_has_ended_the_outage(tmp_path, caplog):
    """003-R7, 003-R12"""
    host = Host(tmp_path / "models.feed")
    (one, _), (two, _) = host.worker(), host.worker()
    good, host.answer = host.answer, None
    with caplog.at_level("INFO"):
        assert not one.refresh()
        host.answer = good
        assert two.refresh() and one.refresh()
    assert [record.message for record in caplog.records] == [
        "feed refresh fails", "feed refresh works again"]


def test_looks_between_fetches_fetch_nothing_and_a_failure_is_not_retried_at_once(tmp_path):
    """003-R12, 003-R14"""
    host = Host(tmp_path / "models.feed")
    feed, _ = host.worker()
    for _ in range(20):
        feed.refresh()
        host.now += 2.5
    assert host.fetches == [1000.0, 1010.0, 1020.0, 1030.0, 1040.0]
    host.answer, host.fetches[:] = None, []
    for _ in range(9):
        feed.refresh()
        host.now += 0.5
    assert host.fetches == [1050.0, 1051.0, 1053.0]
    assert feed.job().next_wait_s() == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize("trouble", ["gone", "a file"])
def test_a_directory_that_cannot_be_written_costs_the_file_and_nothing_else(
        tmp_path, caplog, trouble):
    """003-R11"""
    if trouble == "a file":
        (tmp_path / "gone").write_text("in the way")
    host = Host(tmp_path / "gone" / "models.feed")
    feed, stored = host.worker()
    for _ in range(3):
        assert feed.refresh()
        host.now += 10.0
    assert len(stored) == 3
    assert [record.message for record in caplog.records] == ["saving feed"]


def test_a_job_that_fails_is_run_again_and_stopped_at_once(caplog):
    """003-R7"""
    runs, enough = [], Event()

    def job():
        runs.append(1)
        if len(runs) == 3:
            enough.set()
        raise RuntimeError("of no consequence")

    periodic = PeriodicJob("job", job, wait_s=0.001, jitter=lambda: 0)
    periodic.start()
    periodic.start()
    assert enough.wait(5)
    periodic.stop()
    periodic.stop()
    assert len(caplog.records) == 3
    assert "of no consequence" not in caplog.text


@pytest.mark.parametrize("jitter, waited", [(-1, 9.0), (0, 10.0), (1, 11.0)])
def test_the_wait_between_runs_carries_a_little_jitter(jitter, waited):
    """003-R7"""
    periodic = PeriodicJob("job", lambda: None, 10.0, jitter=lambda: jitter)
    assert periodic.next_wait_s() == pytest.approx(waited)
    drawn = [PeriodicJob("job", lambda: None, 10.0).next_wait_s() for _ in range(100)]
    assert 9.0 <= min(drawn) < max(drawn) <= 11.0


def test_each_pause_lets_the_event_loop_look_at_its_sockets():
    """003-R2, 006-W15"""
    loop = gevent.get_hub().loop
    pause()
    before = loop.iteration
    for _ in range(10):
        pause()
    assert loop.iteration >= before + 10

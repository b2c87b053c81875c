"""POST /explain says what would be done with a request, and does none of it."""

import contextlib
import datetime
import json
import random
import re
import socket
import sqlite3

import pytest

from tests.support.feeds import PRIVATE, bare_entry, model_entry, models_feed, utilization_row
from tests.support.redis_server import RedisServer
from tests.support.router import DEADLINE_S, Router, free_port, read_until, until
from tests.support.upstream import Upstream, complete, unavailable

AUTO = "chutesai/AutoPilot"
KEYS = {"asked", "mode", "needs", "sticky", "snapshot_age_ms", "allowlist_age_ms", "candidates",
        "candidate_count", "passed_over", "error"}
CANDIDATE_KEYS = {"model", "score", "parts", "instances", "utilization", "tier", "fit", "missing",
                  "cooling_s", "in_band", "open"}
ALIASES = """
[[alias]]
name = "tiered"
tiers = [["e", "f"], ["*"]]
exclude = ["a"]
[[alias]]
name = "narrow"
models = ["a", "b", "c", "g*"]
confidential = true
min_context = 65536
[[alias]]
name = "empty"
models = ["nothing"]
"""
MODELS = [
    model_entry("a", supported_features=["json_mode"]), model_entry("b", context_length=8192),
    model_entry("c", confidential_compute=True), bare_entry("d"),
    model_entry("e", input_modalities=["text", "image"]), model_entry("f"),
    bare_entry("g-TEE", 4096), model_entry("none"), model_entry("busy")]
IMAGE = {"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
# What a request may need, each with what is put into its body.
NEEDS = [{}, {}, {"tools": [{"type": "function", "function": {"name": "f"}}]},
         {"response_format": {"type": "json_object"}}, {"messages": [IMAGE]},
         {"max_tokens": 20_000}]
OF_THE_DECISION = {"unknown_model", "cooling", "full", "fit"}


def rows():
    """Return a feed of now: with an old one nothing of it counts in a balanced choice."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat()
    utilization = {"a": 0.1, "b": 0.15, "c": 0.2, "d": 0.3, "e": 0.35, "f": 0.7, "g-TEE": 0.4}
    return [
        *(utilization_row(name, u5=u, u15=u, u1h=u, timestamp=now)
          for name, u in utilization.items()),
        utilization_row("busy", u5=0.97, u15=0.97, u1h=0.97, current=0.97, r5=0.3, timestamp=now),
        utilization_row("none", active=0, timestamp=now),
        utilization_row("stranger", timestamp=now), utilization_row(PRIVATE, timestamp=now)]


@contextlib.contextmanager
def site(folder, **environment):
    path = folder / "aliases.toml"
    path.write_text(ALIASES)
    with Upstream(models=models_feed(MODELS), rows=rows()) as upstream, Router(
            upstream.url, ALIASES_FILE=str(path), **environment) as router:
        router.wait_until_fed()
        yield upstream, router


def explained(router, body, headers=None):
    """Return what /explain says of a request."""
    answer = router.post(body, headers, path="/explain")
    assert answer.status == 200 and answer.value("Content-Type") == "application/json"
    document = json.loads(answer.body)
    assert document.keys() == KEYS
    assert all(each.keys() == CANDIDATE_KEYS for each in document["candidates"])
    return document


def names(document):
    return [each["model"] for each in document["candidates"]]


def reasons(document):
    return {each["model"]: each["reason"] for each in document["passed_over"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with site(tmp_path_factory.mktemp("plain")) as (upstream, router):
        yield upstream, router


def test_an_alias_is_explained_with_what_put_each_candidate_where_it_is(plain):
    """008-R21, 008-R22, 008-R23"""
    document = explained(plain[1], {"model": "tiered", "messages": [IMAGE]})
    assert (document["asked"], document["mode"], document["sticky"]) == ("tiered", "alias", "miss")
    assert document["needs"] == {"features": [], "inputs": ["image"], "context": 0}
    assert 0 <= document["snapshot_age_ms"] < 60_000 and document["error"] is None
    assert 0 <= document["allowlist_age_ms"] < 60_000
    assert [(each["model"], each["tier"], each["fit"], each["missing"])
            for each in document["candidates"]] == [
        ("e", 0, "yes", []), ("d", 1, "unknown", []), ("g-TEE", 1, "unknown", []),
        ("f", 0, "no", ["image"]), ("b", 1, "no", ["image"]), ("c", 1, "no", ["image"]),
        ("busy", 1, "no", ["image"])]
    first = document["candidates"][0]
    assert first["score"] == sum(first["parts"].values()) == 2.6
    assert (first["cooling_s"], first["in_band"], first["open"]) == (0, False, 0)
    assert reasons(document) == {
        "a": "exclude", "none": "no_instance", "stranger": "not_allowlisted"}


@pytest.mark.parametrize("asked, left_out", [
    ("narrow", {"a": "confidential", "b": "confidential", "g-TEE": "min_context",
                "d": "confidential", "f": "confidential"}),
    ("narrow,x", {"x": "unknown_model", "a": "confidential"}), ("a,b,x", {"x": "unknown_model"})])
def test_what_is_passed_over_has_its_reason(plain, asked, left_out):
    """008-R23"""
    document = explained(plain[1], {"model": asked})
    found = reasons(document)
    assert found.items() >= left_out.items()
    assert found.keys().isdisjoint(names(document)) and "c" not in found


def test_a_direct_request_is_explained_too(plain):
    """008-R21, 008-R22"""
    document = explained(plain[1], {"model": "none", "tools": [{"type": "function"}]})
    assert (document["mode"], document["sticky"], names(document)) == ("direct", None, ["none"])
    assert document["candidates"][0]["score"] is None and document["passed_over"] == []


def test_an_alias_without_a_model_is_explained_and_not_refused(plain):
    """008-R26"""
    document = explained(plain[1], {"model": "x,empty"})
    assert (document["error"], document["candidates"]) == ("no_candidates", [])
    assert reasons(document)["x"] == "unknown_model" and reasons(document)["a"] == "not_matched"
    assert plain[1].post({"model": "x,empty"}).error["code"] == "no_candidates"


@pytest.mark.parametrize("body, headers", [
    (b"", {}), (b"{", {}), (b"[]", {}), (b'{"model": NaN}', {}), (b'{"model": 5}', {}),
    (b'{"model": "a", "model": "b"}', {}), (b"{}", {}), (b'{"model": ","}', {}),
    (b'{"model": "unheard-of"}', {}), (b'{"model": "x,y"}', {}), (b"\xff", {}),
    (b'{"model": "a,b,c,d,e,f,g,h,i"}', {}), (b"x", {"Content-Encoding": "gzip"}),
    (b"x" * 40_000_000, {}), (b"[" * 100_000, {})])
def test_a_bad_request_gets_the_error_it_would_get(plain, body, headers):
    """008-R21"""
    real = plain[1].post(body, headers)
    explained = plain[1].post(body, headers, path="/explain")
    assert real.status in (400, 413, 415)
    assert (explained.status, explained.body) == (real.status, real.body)


def test_the_route_is_on_the_main_address_and_takes_a_post_only(tmp_path):
    """008-R21"""
    port = free_port()
    with site(tmp_path, HEALTH_LISTEN_ADDR=f"127.0.0.1:{port}", STICKY_TTL_SECS="0") as (_, router):
        # Where no choices are kept, none is told of.
        assert explained(router, {"model": "a,b"})["sticky"] is None
        assert router.post({"model": "a"}, path="/explain", port=port).error["code"] == "not_found"
        assert router.get("/explain").error["code"] == "method_not_allowed"
        assert "POST /explain" in router.get("/nowhere").error["message"]


def test_its_bodies_are_bounded_with_all_others(tmp_path):
    """008-R21, 007-R20, 007-R24: one that only drips gives way, and one that leaves gives back."""
    head = b"POST /explain HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
    with site(tmp_path, MAX_REQUEST_BYTES="100000", MAX_BODY_BYTES_IN_FLIGHT="100000") as (
            _, router), contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(dripping := socket.create_connection(
                ("127.0.0.1", router.port), DEADLINE_S))
            dripping.sendall(head)
            router.wait_for_connections(1)
            # A body that is here does not wait for one that is only announced.
            until(lambda: router.chat("a", padding="x" * 90_000).status == 200)
            assert b'"overloaded"' in read_until(dripping, b"}}")
            dripping.close()
        with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as leaving:
            leaving.sendall(head)
        until(lambda: router.post(b'{"model": "a"}'.ljust(100_000), path="/explain").status == 200)


def rest(router):
    """Return the metrics without those that move by themselves."""
    return {key: value for key, value in router.metrics_at_rest().items()
            if not re.match(r"ready_.*_age_ms|refreshes_total|feed_age", key[0])}


def test_nothing_is_sent_counted_kept_renewed_or_logged(plain):
    """008-R25"""
    upstream, router = plain

    def first_bytes():
        return router.metrics().get(("model_first_byte_seconds_count", "a"), 0)

    with sqlite3.connect(router.runtime_directory() / "choices.sqlite") as database:
        counted, answer = first_bytes(), router.chat("a,b")
        assert answer.status == 200
        # Its line and the counts by model come after the answer.
        router.record(answer.value("X-Request-Id"))
        until(lambda: first_bytes() == counted + 1)
        before, kept = rest(router), database.execute("SELECT * FROM sticky").fetchall()
        sent, lines = len(upstream.exchanges), len(router.lines)
        for body in ({"model": AUTO}, {"model": "a,b"}, {"model": "b,x"}, {"model": "a"}, {}):
            router.post(body, path="/explain")
        assert explained(router, {"model": "a,b"})["sticky"] == "hit"
        assert kept and database.execute("SELECT * FROM sticky").fetchall() == kept
    database.close()
    assert rest(router) == before and len(upstream.exchanges) == sent
    assert not [line for line in router.lines[lines:] if line["message"] == "request"]


def test_an_entry_in_redis_is_read_and_its_life_not_renewed(tmp_path):
    """008-R25, 005-R9"""
    with RedisServer() as redis, site(
            tmp_path, STICKY_URL=redis.url, STICKY_HASH_SECRET="x" * 32) as (_, router):
        router.wait_until_fed()
        # A request of the first moment finds no connection to Redis.
        until(lambda: router.chat("a,b").status == 200 and b"sticky" in redis.command("KEYS", "*"))
        key = redis.command("KEYS", "*").split(b"\r\n")[2].decode()
        redis.command("EXPIRE", key, "1000")
        redis.command("CONFIG", "RESETSTAT")
        for _ in range(5):
            assert explained(router, {"model": "a,b"})["sticky"] == "hit"
        assert int(redis.command("TTL", key)[1:]) <= 1000
        calls = redis.command("INFO", "commandstats")
        assert b"cmdstat_get:calls=5," in calls and b"getex" not in calls and b"_set:" not in calls
        assert router.chat("a,b").status == 200
        assert int(redis.command("TTL", key)[1:]) > 1000


def a_request(draw):
    """Return the body and the headers of a request that may be made."""
    kind = draw.random()
    if kind < 0.5:
        model = draw.choice([AUTO, "tiered", "narrow", AUTO])
    elif kind < 0.9:
        model = ",".join(draw.sample(
            ["a", "b", "c", "d", "busy", "f", "x", "tiered", "narrow", "e:fast", AUTO],
            draw.randint(2, 5)))
    else:
        model = draw.choice(["a", "none", "unheard-of", "empty"])
    body = {"model": model, "stream": draw.random() < 0.5,
            "messages": [{"role": "user", "content": "hello"}], **draw.choice(NEEDS)}
    if draw.random() < 0.2:
        body["prompt_cache_key"] = draw.choice("pq")
    headers = {"Authorization": f"Bearer {draw.choice('123')}"}
    if draw.random() < 0.3:
        headers["x-session-id"] = draw.choice("st")
    return body, headers


@pytest.mark.parametrize("choice", ["ranked", "balanced"])
def test_a_hundred_requests_are_explained_and_then_done_the_same_way(tmp_path, choice):
    """008-R21"""
    draw, seen = random.Random(choice), []
    with site(tmp_path, ALIAS_CHOICE=choice, COOLDOWN_SECS="300", COOLDOWN_MAX_SECS="300",
              COOLDOWN_FAILURES="2") as (upstream, router):
        for _ in range(100):
            for name in "abcdefg":
                upstream.on(name + "-TEE" * (name == "g"), unavailable if draw.random() < 0.2
                            else complete(b"{}"))
            if draw.random() < 0.15:
                for name in ["a", "b", "c", "d", "e", "f", "g-TEE", "busy"]:
                    upstream.on(name, unavailable)
            body, headers = a_request(draw)
            explanation = router.post(body, headers, path="/explain")
            sent = len(upstream.exchanges)
            real = router.post(body, headers)
            attempts = [exchange.model for exchange in upstream.exchanges[sent:]]
            if explanation.status != 200:
                assert (explanation.status, explanation.body) == (real.status, real.body)
                continue
            document = json.loads(explanation.body)
            if document["error"]:
                assert (real.error["code"], attempts) == (document["error"], [])
                continue
            line = router.record(real.value("X-Request-Id"))
            assert names(document)[:len(attempts)] == attempts
            # A choice that is tried first may fail then; nobody knows that before.
            sticky = "hit" if line["sticky"] == "moved" else line["sticky"]
            assert (line["mode"], sticky) == (document["mode"], document["sticky"] or "")
            seen.append((document, attempts, real.value("x-chutes-autopilot-sticky")))
            if len(attempts) == 1 and document["mode"] != "direct":
                assert (real.value("x-chutes-autopilot-skipped") or "") == ", ".join(
                    f"{each['model']};{each['reason']}" for each in document["passed_over"]
                    if each["reason"] in OF_THE_DECISION)
    # The hundred were of many kinds.
    assert {sticky for _, _, sticky in seen} >= {"hit", "miss", "ignored", "moved"}
    assert any(attempts == names(document) and len(attempts) > 3 for document, attempts, _ in seen)
    assert any(each["cooling_s"] for document, _, _ in seen for each in document["candidates"])
    assert {"cooling", "unknown_model"} <= {
        reason for document, _, _ in seen for reason in reasons(document).values()}
    in_band = {each["in_band"] for document, _, _ in seen for each in document["candidates"]}
    assert in_band == ({True, False} if choice == "balanced" else {False})

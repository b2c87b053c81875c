"""Aliases, what a request needs, and names that nobody knows, over real sockets."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.feeds import bare_entry, model_entry, models_feed, utilization_row
from tests.support.router import Router, until
from tests.support.upstream import Upstream, complete
from tests.wire.conftest import SHORT
from tests.wire.test_start import start

AUTO = "chutesai/AutoPilot"
TEXT, SEES = "quarry/Text-8B", "lumen-ai/Sees-70B"
LONG, BARE = "harbor/Long-1B", "tallgrass/Bare-3B"
HEARS, HIDDEN, GUARD = "northwind/Hears-2B", "quarry/Hidden-9B-TEE", "lumen-ai/Guard-1B"
# Best first, by the utilization they are given.
RANKED = [TEXT, BARE, SEES, LONG, HEARS, GUARD, HIDDEN]
ENTRIES = [
    model_entry(TEXT, context_length=40_960, supported_features=["json_mode"]), bare_entry(BARE),
    model_entry(SEES, input_modalities=["text", "image"]),
    model_entry(LONG, context_length=1_000_000, supported_features=["structured_output"]),
    model_entry(HEARS, input_modalities=["text", "audio"], supported_features=[]),
    model_entry(GUARD, context_length=8_192), model_entry(HIDDEN, context_length=32_768)]
ALIASES = """
[[alias]]
name = "gpt-4o"
models = ["lumen-ai/*", "harbor/*"]
exclude = ["*Guard*"]

[[alias]]
name = "fixed"
tiers = [["harbor/Long-1B"], ["quarry/*", "tallgrass/*"], ["quarry/Text-8B"]]

[[alias]]
name = "secret"
confidential = true

[[alias]]
name = "long"
min_context = 100000

[[alias]]
name = "nobody"
models = ["no/such-[ab]"]

[[alias]]
name = "northwind/Hears-2B"
models = ["quarry/Text-8B"]
"""


def backend():
    """Return a backend whose chutes are ranked as RANKED."""
    rows = [utilization_row(name, active=40 - place) for place, name in enumerate(RANKED)]
    return Upstream(models=models_feed(ENTRIES), rows=rows)


@pytest.fixture(scope="module")
def passing():
    with backend() as upstream, Router(upstream.url, UNKNOWN_MODELS="pass",
                                       STICKY_TTL_SECS="0") as router:
        router.wait_until_fed()
        yield router, upstream


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("etc") / "aliases.toml"
    path.write_text(ALIASES)
    # Its models are down in one test after another, and none is to remember that.
    with backend() as upstream, Router(
            upstream.url, **SHORT | {"MAX_REQUEST_BYTES": "2000000"}, ALIASES_FILE=str(path),
            STICKY_TTL_SECS="0", COOLDOWN_SECS="0") as router:
        router.wait_until_fed()
        yield router, upstream


def tried(router, upstream, model, **body):
    """Return the models that are tried for a request when all of them are down."""
    before = len(upstream.exchanges)
    upstream.otherwise(complete(b"down", status=503))
    try:
        answer = router.chat(model, **body)
    finally:
        upstream.otherwise(complete(b"{}"))
    assert (answer.status, answer.body) == (503, b"down")
    return [exchange.model for exchange in upstream.exchanges[before:]]


def picked(router, model, **body):
    answer = router.chat(model, **body)
    assert answer.status == 200
    return answer.value("x-chutes-autopilot-selected")


def parts(kind):
    return {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "data:,x"}}]}]}


NEEDS = {
    "plain": ({}, RANKED),
    "image": (parts("image_url"), [SEES, BARE, TEXT, LONG, HEARS, GUARD, HIDDEN]),
    "audio": (parts("input_audio"), [HEARS, BARE, TEXT, SEES, LONG, GUARD, HIDDEN]),
    "video": (parts("video_url"), [BARE, TEXT, SEES, LONG, HEARS, GUARD, HIDDEN]),
    "60k tokens": ({"messages": [{"role": "user", "content": "word " * 48_000}]},
                   [BARE, SEES, LONG, HEARS, TEXT, GUARD, HIDDEN]),
    "a long answer": ({"max_completion_tokens": 200_000},
                      [LONG, TEXT, BARE, SEES, HEARS, GUARD, HIDDEN]),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]},
              [SEES, GUARD, HIDDEN, BARE, TEXT, LONG, HEARS]),
    "json_schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
                    [SEES, LONG, GUARD, HIDDEN, BARE, TEXT, HEARS]),
    "json_object": ({"response_format": {"type": "json_object"}},
                    [TEXT, SEES, GUARD, HIDDEN, BARE, LONG, HEARS]),
    "odd": ({"messages": {"content": 5}, "tools": "x", "response_format": [], "max_tokens": "y"},
            RANKED),
}


@pytest.mark.parametrize("case", NEEDS)
def test_an_alias_tries_what_fits_first_and_what_does_not_fit_last(site, case):
    """003-R21, 003-R22"""
    body, order = NEEDS[case]
    assert tried(*site, AUTO, **body) == order


def test_a_direct_request_and_a_list_without_an_alias_have_no_needs(site):
    """003-R21"""
    router, upstream = site
    assert tried(router, upstream, f"{TEXT},{SEES}", **parts("image_url")) == [TEXT, SEES]
    assert tried(router, upstream, TEXT, **parts("image_url")) == [TEXT]


def test_fit_can_be_switched_off():
    """003-R22"""
    with backend() as upstream, Router(upstream.url, **SHORT, ALIAS_FIT="false") as router:
        router.wait_until_fed()
        assert picked(router, AUTO, **parts("image_url")) == TEXT


def test_a_sticky_choice_that_does_not_fit_is_passed_over_once_and_kept():
    """005-R50"""
    with backend() as upstream, Router(upstream.url, **SHORT) as router:
        router.wait_until_fed()
        # The client's own choice, which is not the best ranked.
        assert picked(router, f"{LONG},{TEXT}") == LONG
        assert picked(router, AUTO) == LONG
        assert picked(router, AUTO, **parts("image_url")) == SEES
        assert picked(router, AUTO) == LONG


@pytest.mark.parametrize("alias, pool", [
    ("gpt-4o", [SEES, LONG]), ("fixed", [LONG, TEXT, BARE, HIDDEN]), ("secret", [HIDDEN]),
    ("long", [BARE, SEES, LONG, HEARS]), (HEARS, [TEXT])])
def test_an_alias_of_the_file_tries_its_pool_and_never_anything_else(site, alias, pool):
    """002-R50"""
    assert tried(*site, alias) == pool


def test_a_tier_is_tried_before_the_next_unless_it_does_not_fit(site):
    """002-R50, 003-R22"""
    router, upstream = site
    assert tried(router, upstream, "fixed", tools=[{}]) == [BARE, HIDDEN, LONG, TEXT] or (
        tried(router, upstream, "fixed", tools=[{}]) == [HIDDEN, BARE, LONG, TEXT])


def test_an_alias_without_an_eligible_model_has_no_candidates(site):
    """002-R5, 002-R50"""
    router, _ = site
    for asked in ("nobody", "nobody,", "nobody,who/is-this"):
        answer = router.chat(asked)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (
            503, "no_candidates", "model")


def test_an_alias_in_a_list_stands_for_its_candidates_in_their_order(site):
    """004-R6"""
    router, upstream = site
    assert tried(router, upstream, f"{HIDDEN}, gpt-4o ,{TEXT},{LONG}") == [
        HIDDEN, SEES, LONG, TEXT]
    assert tried(router, upstream, f"{HIDDEN},gpt-4o", **parts("image_url")) == [
        HIDDEN, SEES, LONG]
    assert router.chat(f"{HIDDEN},gpt-4o", headers={"X-Request-Id": "in-a-list"}).status == 200
    assert router.record("in-a-list")["mode"] == "list"


def test_an_alias_is_logged_by_its_name(site):
    """001-R8"""
    router, _ = site
    router.chat("gpt-4o", headers={"X-Request-Id": "by-its-name"})
    line = router.record("by-its-name")
    assert (line["mode"], line["asked"], line["selected"]) == ("alias", "gpt-4o", SEES)


# -- names that the feed does not have ------------------------------------------------------------


def test_an_unknown_item_of_a_list_is_skipped_and_named(site):
    """002-R51, 002-R52, 004-R3"""
    router, upstream = site
    answer = router.chat(f"gone/One,{TEXT},gone/Two:x, {SEES}")
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, TEXT)
    assert answer.value("x-chutes-autopilot-skipped") == (
        "gone/One;unknown_model, gone/Two:x;unknown_model")
    assert router.chat(f"{TEXT},{SEES}").value("x-chutes-autopilot-skipped") is None
    assert tried(router, upstream, f"gone/One,{TEXT},gone/Two:x, {SEES}") == [TEXT, SEES]


def test_an_error_after_an_attempt_names_what_was_skipped_and_one_without_does_not(site):
    """002-R52"""
    router, upstream = site
    upstream.on(TEXT, lambda exchange: exchange.reset())
    try:
        answer = router.chat(f"gone/One,{TEXT}")
    finally:
        upstream.on(TEXT, complete(b"{}"))
    assert answer.error["code"] == "upstream_connect_error"
    assert answer.value("x-chutes-autopilot-skipped") == "gone/One;unknown_model"
    answer = router.chat("gone/One,gone/Two")
    assert (answer.status, answer.error["code"]) == (400, "unknown_model")
    assert "'gone/One', 'gone/Two'" in answer.error["message"]
    assert answer.value("x-chutes-autopilot-skipped") is None


def test_the_names_skipped_are_bounded_and_the_upstreams_own_field_is_dropped(site):
    """002-R52"""
    router, upstream = site
    upstream.on(TEXT, complete(b"{}", fields=[("X-Chutes-Autopilot-Skipped", "theirs")]))
    long = [f"gone/{number}{'x' * 900}" for number in range(6)]
    value = router.chat(",".join(["x" * 3990, *long, TEXT])).value("x-chutes-autopilot-skipped")
    assert value == ", ".join(f"{name};unknown_model" for name in long[:4]) and len(value) < 4000
    assert router.chat(f"{TEXT},{SEES}").value("x-chutes-autopilot-skipped") is None
    upstream.on(TEXT, complete(b"{}"))


def test_unknown_names_pass_as_written_where_that_is_wished():
    """002-R51"""
    with backend() as upstream, Router(upstream.url, **SHORT, UNKNOWN_MODELS="pass",
                                       STICKY_TTL_SECS="0") as router:
        router.wait_until_fed()
        assert tried(router, upstream, "default:latency") == ["default:latency"]
        assert tried(router, upstream, f"gone/One,{TEXT}") == ["gone/One", TEXT]
        upstream.on("gone/One", complete(b'{"detail":"model not found: gone/One"}', status=404))
        assert picked(router, f"gone/One,{TEXT}") == TEXT


@pytest.mark.parametrize("odd", [
    "caf\u00e9/One", "a\nx-set: b", "tab\tbed", "\U0001f600", "x" * 4001])
@pytest.mark.parametrize("unknown", ["pass", "refuse"])
def test_a_name_that_no_field_can_hold_is_treated_like_any_other_and_not_told(
        passing, site, unknown, odd):
    """002-R55, 004-R4"""
    router, upstream = passing if unknown == "pass" else site
    answer = router.chat(f"{odd}, gone/One, {TEXT}")
    assert (answer.status, answer.value("x-set")) == (200, None)
    if unknown == "pass":
        assert upstream.exchanges[-1].model == odd
        assert answer.value("x-chutes-autopilot-selected") is None
    else:
        assert answer.value("x-chutes-autopilot-selected") == TEXT
        assert answer.value("x-chutes-autopilot-skipped") == "gone/One;unknown_model"
        assert router.chat(f"{odd},").error["code"] == "unknown_model"


NOT_FOUND = b'{"detail":"model not found: lumen-ai/Sees-70B","more":[1]}'


def test_a_404_of_a_models_name_is_the_next_ones_turn_and_passes_at_the_end(site):
    """002-R12"""
    router, upstream = site
    upstream.on(TEXT, complete(NOT_FOUND, "chunked", status=404))
    try:
        assert picked(router, AUTO) == BARE
        assert picked(router, f"{TEXT},{SEES}") == SEES
        for asked in (f"gone,{TEXT}", TEXT):
            answer = router.chat(asked)
            assert (answer.status, answer.body) == (404, NOT_FOUND)
    finally:
        upstream.on(TEXT, complete(b"{}"))


# -- the file, again ------------------------------------------------------------------------------


def test_a_bad_file_is_refused_at_start_with_the_other_variables(tmp_path):
    """002-R50, 001-R3"""
    path = tmp_path / "aliases.toml"
    path.write_text('[[alias]]\nname = "a,b"\n[[alias]]\nname = "x"\nmodels = "y"\n')
    result = start(ALIASES_FILE=str(path), UNKNOWN_MODELS="drop")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines() == [
        "ALIASES_FILE: alias 'a,b', key name: expected visible ASCII without a comma.",
        "ALIASES_FILE: alias 'x', key models: expected an array.",
        "UNKNOWN_MODELS: got 'drop', expected one of refuse, pass."]


def wait_for_a_new_worker(router, since):
    """Wait until a worker that started since then has both feeds."""
    [line, *_] = router.wait_for_lines(lambda line: line["message"] == "worker ready", since=since)
    router.wait_for_lines(lambda other: other["message"] == "feed refreshed"
                          and other["pid"] == line["pid"], 2, since=since)


def test_a_reload_reads_the_file_again_and_a_worker_that_is_replaced_does_not(tmp_path):
    """002-R50, 007-R4"""
    path = tmp_path / "aliases.toml"
    path.write_text(f'[[alias]]\nname = "mine"\nmodels = ["{TEXT}"]\n')
    with backend() as upstream, Router(upstream.url, ALIASES_FILE=str(path),
                                       UNKNOWN_MODELS="pass", STICKY_TTL_SECS="0") as router:
        router.wait_until_fed()
        assert picked(router, "mine") == TEXT
        path.write_text("[[alias]]\nname = 5\n")
        [worker] = [line["pid"] for line in router.lines if line["message"] == "worker ready"]
        since = len(router.lines)
        os.kill(worker, signal.SIGKILL)
        wait_for_a_new_worker(router, since)
        assert picked(router, "mine") == TEXT
        path.write_text(f'[[alias]]\nname = "mine"\nmodels = ["{SEES}"]\n')
        since = len(router.lines)
        router.process.send_signal(signal.SIGHUP)
        wait_for_a_new_worker(router, since)
        router.wait_for_lines(
            lambda line: line["message"].startswith("Worker exiting"), since=since)
        assert picked(router, "mine") == SEES


def test_a_reload_with_a_bad_file_is_refused_and_the_old_aliases_stay(tmp_path):
    """002-R50, 007-R4"""
    path = tmp_path / "aliases.toml"
    path.write_text(f'[[alias]]\nname = "mine"\nmodels = ["{TEXT}"]\n')
    with backend() as upstream, Router(upstream.url, ALIASES_FILE=str(path)) as router:
        router.wait_until_fed()
        path.write_text('[[alias]]\nname = "mine"\nmodels = 5\n[[alias]]\n')
        router.process.send_signal(signal.SIGHUP)
        [line] = router.wait_for_lines(lambda line: line["message"] == "reload refused")
        assert line["why"] == ("ALIASES_FILE: alias 'mine', key models: expected an array. "
                               "ALIASES_FILE: alias number 2, key name: expected, and missing.")
        assert picked(router, "mine") == TEXT


def test_models_that_appear_or_go_are_logged_once_each_and_counted():
    """003-R23"""
    with Upstream(models=models_feed([TEXT, SEES]), rows=[]) as upstream:
        with Router(upstream.url, MODELS_REFRESH_MS="50", WEB_CONCURRENCY="2") as router:
            router.wait_for_lines(lambda line: line.get("feed") == "models", 2)
            upstream.models = models_feed([SEES, LONG, HEARS])
            changed = router.wait_for_lines(lambda line: line["message"] == "catalogue changed", 3)
            router.wait_for_lines(
                lambda line: line.get("feed") == "models", 8, since=len(router.lines))
            assert sorted((line["change"], line["model"]) for line in changed) == [
                ("appeared", LONG), ("appeared", HEARS), ("gone", TEXT)]
            metrics = router.metrics()
            assert metrics["catalogue_changes_total", "appeared"] == 2
            assert metrics["catalogue_changes_total", "gone"] == 1


# -- completions of a prompt, the query, the trace ------------------------------------------------


def test_of_the_largest_feeds_many_can_ask_at_once():
    """003-R34"""
    names = [f"maker/Model-{number}-TEE" for number in range(20_000)]
    rows = [{"name": name, "active_instance_count": 2} for name in names]
    entries = [{"id": name, "object": "model", "supported_features": ["tools"]} for name in names]
    entries[0]["supported_features"] = []
    with (Upstream(models=models_feed(entries), rows=rows) as upstream,
          Router(upstream.url, MODELS_REFRESH_MS="60000", UTILIZATION_REFRESH_MS="60000") as router,
          ThreadPoolExecutor(24) as clients):
        until(lambda: router.get("/readyz").status == 200)
        asked = [clients.submit(picked, router, AUTO, tools=[{}]) for _ in range(16)]
        listed = [clients.submit(router.get, "/v1/models") for _ in range(8)]
        assert {future.result() for future in asked} == {names[1]}
        assert len({future.result().value("ETag") for future in listed}) == 1
        assert len(json.loads(listed[0].result().body)["data"]) == len(names) + 2


def test_a_prompts_completion_goes_the_same_way(site):
    """002-R53, 003-R21"""
    router, upstream = site
    body = {"model": AUTO, "prompt": "word " * 48_000, "stream": True}
    answer = router.post(body, path="/v1/completions")
    assert (answer.status, answer.value("x-chutes-autopilot-selected")) == (200, BARE)
    exchange = upstream.exchanges[-1]
    assert exchange.target == "/v1/completions"
    assert json.loads(exchange.body) == {**body, "model": BARE}
    assert router.post({"model": "gone"}, path="/v1/completions").error["code"] == "unknown_model"
    assert router.get("/v1/completions").value("Allow") == "POST"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_query_goes_upstream_as_it_came(site, path):
    """002-R10"""
    router, upstream = site
    assert router.post({"model": TEXT}, path=path + "?a=%2F&b=x+y&a=%C3%A9&c").status == 200
    assert upstream.exchanges[-1].target == path + "?a=%2F&b=x+y&a=%C3%A9&c"
    assert router.post({"model": TEXT}, path=path + "?").status == 200
    assert upstream.exchanges[-1].target == path


def test_a_trace_is_not_asked_of_the_upstream_and_the_w3cs_own_passes(site):
    """002-R10"""
    router, upstream = site
    router.chat(TEXT, headers={"X-Chutes-Trace": "true", "traceparent": "00-a-b-01",
                               "tracestate": "x=y"})
    fields = dict(upstream.exchanges[-1].fields)
    assert "x-chutes-trace" not in fields
    assert (fields["traceparent"], fields["tracestate"]) == ("00-a-b-01", "x=y")

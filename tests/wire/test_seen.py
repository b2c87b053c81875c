"""What a host has seen: counted by whichever worker, shown by any."""

import gzip
import json
import os
import signal

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router, until
from tests.support.upstream import Upstream, chat_completion, complete, pieces, sse

USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46,
         "prompt_tokens_details": {"cached_tokens": 5}}
JSON = ("Content-Type", "application/json")
EVENTS = ("Content-Type", "text/event-stream")
SAID = json.dumps({"object": "chat.completion", "choices": [], "usage": USAGE}).encode()


@pytest.fixture(scope="module")
def upstream():
    names = ["whole", "streamed", "coded", "cut", "refused", "down", "plain"]
    with Upstream(models=models_feed(names), rows=list(map(utilization_row, names))) as upstream:
        upstream.on("whole", complete(SAID, fields=[JSON]))
        upstream.on("streamed", pieces(
            sse([{"choices": [], "usage": None}, {"choices": [], "usage": USAGE}]),
            fields=[EVENTS]))
        upstream.on("coded", complete(gzip.compress(SAID), fields=[
            JSON, ("Content-Encoding", "gzip")]))
        upstream.on("cut", pieces([b"data: %s\n\n" % SAID], fields=[EVENTS]))
        upstream.on("refused", complete(SAID, status=400, fields=[JSON]))
        upstream.on("down", complete(b"{}", status=503, fields=[JSON]))
        upstream.on("plain", complete(chat_completion("plain", "hi"), fields=[JSON]))
        yield upstream


@pytest.fixture(scope="module")
def router(upstream):
    with Router(upstream.url) as router:
        router.wait_until_fed()
        yield router


def metrics_written(router):
    """Scrape when every request has ended and its worker has written what it has seen."""
    router.metrics_at_rest()
    # A worker that is asked what its host has seen writes its own share first.
    router.get("/status")
    return router.metrics()


def tokens(router, since, model):
    now = metrics_written(router)
    names = [("tokens_total", kind, model) for kind in ("input", "output", "cached")]
    return tuple(now.get(name, 0) - since.get(name, 0) for name in names)


@pytest.mark.parametrize("model, said", [
    ("whole", (12, 34, 5)), ("streamed", (12, 34, 5)), ("plain", (1, 1, 0)), ("coded", (0, 0, 0)),
    ("cut", (0, 0, 0)), ("refused", (0, 0, 0))])
def test_tokens_are_counted_of_complete_answers_that_say_them(router, model, said):
    """008-R6"""
    before = metrics_written(router)
    router.chat(model)
    assert tokens(router, before, model) == said


def test_a_stream_without_its_end_counts_no_tokens_where_it_is_not_cut_either(upstream):
    """008-R6"""
    with Router(upstream.url, CUT_UNFINISHED_STREAMS="false") as router:
        router.wait_until_fed()
        before = router.metrics_at_rest()
        assert router.chat("cut").ended == "complete"
        assert tokens(router, before, "cut") == (0, 0, 0)
        router.chat("whole")
        assert tokens(router, before, "whole") == (12, 34, 5)


def test_first_bytes_are_measured_by_model(router):
    """008-R7"""
    before = metrics_written(router)
    for model in ("whole", "whole", "refused", "down", "nobody:x"):
        router.chat(model)
    after = metrics_written(router)
    counts = {key[1]: value - before.get(key, 0) for key, value in after.items()
              if key[0] == "model_first_byte_seconds_count"}
    assert counts["whole"] == 2 and not counts.keys() & {"refused", "down", "nobody:x", "other"}


def test_the_age_of_each_feed_is_shown(router):
    """008-R7"""
    shown = router.metrics()
    age_ms = shown["ready_allowlist_age_ms",]
    assert shown["feed_age_seconds", "models"] * 1000 == pytest.approx(age_ms, abs=1)
    # The rows carry a timestamp of long ago.
    assert shown["feed_age_seconds", "utilization"] > 86_400


def test_a_feed_that_never_came_has_no_age(upstream):
    """008-R7"""
    with Router(upstream.url, UTILIZATION_URL="http://127.0.0.1:9/") as router:
        until(lambda: router.metrics()["feed_age_seconds", "models"] >= 0)
        assert router.metrics()["feed_age_seconds", "utilization"] == -1


def status(router):
    return json.loads(router.get("/status").body)


def seen_of(router, model):
    """Return what the router tells of a model, whichever worker answers."""
    return next((each for each in status(router)["models"] if each["model"] == model), None)


def test_what_a_killed_worker_has_seen_is_still_told(upstream):
    """008-R1"""
    with Router(upstream.url, WEB_CONCURRENCY="2") as router:
        router.wait_until_fed()
        for _ in range(20):
            router.chat("whole")
        router.chat("down")
        until(lambda: (seen_of(router, "whole") or {}).get("answers") == 20)
        # Another worker may have had it, and each writes at its own time.
        until(lambda: status(router)["requests"]["by_status"] == {"200": 20, "503": 1})
        for line in router.wait_for_lines(lambda line: line["message"] == "worker ready", 2):
            os.kill(line["pid"], signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 4)
        assert seen_of(router, "whole")["answers"] == 20
        # The last candidate's 503 is passed on, and is a failure too.
        assert seen_of(router, "down")["failures"] == {"upstream_503": 1}
        assert status(router)["requests"]["by_status"] == {"200": 20, "503": 1}
        assert len(status(router)["recent"]) == 21


def test_the_last_requests_are_told_as_in_their_log_lines(router):
    """008-R5"""
    router.chat("down,whole", headers={"X-Request-Id": "told"})
    until(lambda: any(line["request_id"] == "told" for line in status(router)["recent"]))
    [told] = [line for line in status(router)["recent"] if line["request_id"] == "told"]
    logged = router.record("told")
    assert {key: logged[key] for key in told if key != "time"} == {
        key: value for key, value in told.items() if key != "time"}
    assert set(logged) - set(told) == {"level", "logger", "pid", "message"}


def test_what_is_under_way_is_told_of_all_workers(upstream):
    """008-R1"""
    with Router(upstream.url, WEB_CONCURRENCY="2") as router:
        router.wait_until_fed()

        def hold(exchange):
            exchange.head(200, EVENTS, ("Transfer-Encoding", "chunked"))
            exchange.chunk(b"data: {}\n\n")
            exchange.until_closed()

        upstream.on("whole:held", hold)
        held = [router.connect() for _ in range(6)]
        for connection in held:
            connection.request("POST", "/v1/chat/completions",
                               json.dumps({"model": "whole:held", "stream": True}))
            assert connection.getresponse().read1(100)
        until(lambda: (status(router)["requests"]["active"], status(router)["requests"]["streams"])
              == (6, 6))
        for connection in held:
            connection.close()
        until(lambda: (status(router)["requests"]["active"], status(router)["requests"]["streams"])
              == (0, 0))

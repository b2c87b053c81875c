"""Liveness and readiness as a kubelet asks for them."""

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router, until
from tests.support.upstream import Upstream


def not_ready(router):
    answer = router.get("/readyz")
    assert (answer.status, answer.error["type"]) == (503, "not_ready")
    return answer.error["code"]


def test_healthz_answers_whatever_the_backend_does():
    """001-R9"""
    with Upstream() as upstream:
        upstream.feed_status = 500
        with Router(upstream.url) as router:
            answer = router.get("/healthz")
            assert (answer.status, answer.body) == (200, b"ok")
            assert not_ready(router) == "missing_allowlist"


def test_readyz_is_200_while_both_feeds_are_there_and_fresh(router):
    """001-R10"""
    answer = router.get("/readyz")
    assert (answer.status, answer.body) == (200, b"ready")


@pytest.mark.parametrize("models, rows, code", [
    (models_feed(["a"]), b"not json", "not_ready"),
    (models_feed(["a"]), [utilization_row("b")], "not_ready"),
    (models_feed(["a"]), [utilization_row("a", active=0)], "not_ready"),
    (models_feed([]), [utilization_row("a")], "missing_allowlist"),
    (b"[]", [utilization_row("a")], "missing_allowlist"),
])
def test_readyz_says_what_is_missing(models, rows, code):
    """001-R10, 003-R9, 003-R4"""
    with Upstream(models=models, rows=rows) as upstream, Router(upstream.url) as router:
        router.wait_for_lines(lambda line: str(line["message"]).startswith("feed refresh"), 2)
        assert not_ready(router) == code


def test_rows_that_no_alias_can_use_are_told_of_once():
    """003-R4"""
    rows = [utilization_row("a "), utilization_row("b "), utilization_row("a", active=0)]
    with Upstream(models=models_feed(["a", "b"]), rows=rows) as upstream:
        with Router(upstream.url, WEB_CONCURRENCY="1", UTILIZATION_REFRESH_MS="50") as router:
            [line] = router.wait_for_lines(
                lambda line: line["message"] == "no model is eligible")
            assert (line["why"], line["level"]) == (
                "2 not_allowlisted, 1 no_instance", "WARNING")
            upstream.rows = [utilization_row("a")]
            router.wait_for_lines(lambda line: line["message"] == "models are eligible again")
            assert router.get("/readyz").status == 200
        told = [line["message"] for line in router.lines if "eligible" in str(line["message"])]
        assert told == ["no model is eligible", "models are eligible again"]


@pytest.mark.parametrize("settings, code", [
    ({"READYZ_MAX_ALLOWLIST_AGE_MS": "50"}, "stale_allowlist"),
    ({"READYZ_MAX_SNAPSHOT_AGE_MS": "50"}, "stale_snapshot"),
])
def test_readyz_says_what_is_stale(settings, code):
    """001-R10"""
    feed = {"models": models_feed(["a"]), "rows": [utilization_row("a")]}
    slow = {"MODELS_REFRESH_MS": "3600000", "UTILIZATION_REFRESH_MS": "3600000"}
    with Upstream(**feed) as upstream, Router(upstream.url, **slow, **settings) as router:
        router.wait_until_fed()
        # A fast machine asks within that millisecond.
        until(lambda: router.get("/readyz").status != 200)
        assert not_ready(router) == code


def test_a_failed_refresh_keeps_the_last_good_data_and_is_logged_once_per_change():
    """003-R7"""
    feed = {"models": models_feed(["a"]), "rows": [utilization_row("a")]}
    with Upstream(**feed) as upstream, Router(upstream.url, UTILIZATION_REFRESH_MS="20") as router:
        router.wait_until_fed()
        upstream.feed_status = 500
        fails = router.wait_for_lines(lambda line: line["message"] == "feed refresh fails")
        assert (fails[0]["feed"], fails[0]["why"]) == ("utilization", "status 500")
        asked = len(upstream.feed_requests)
        assert router.chat("chutesai/AutoPilot").status == 200
        upstream.feed_status = 200
        router.wait_for_lines(lambda line: line["message"] == "feed refresh works again")
        assert len(upstream.feed_requests) > asked
        assert len([e for e in router.lines if e["message"] == "feed refresh fails"]) == 1

"""A client's choice stays until it fails."""

import contextlib
import time

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router, until
from tests.support.upstream import Upstream, complete, reset_at_once, stall, unavailable

ALIAS = "chutesai/AutoPilot"


def picked(answer):
    assert answer.status == 200
    return answer.value("x-chutes-autopilot-selected")


def told_of_choice(router, answer):
    """Return what the header field and the log line say of the client's choice."""
    return (answer.value("x-chutes-autopilot-sticky"),
            router.record(answer.value("X-Request-Id"))["sticky"])


@pytest.fixture
def ranked():
    """A backend that ranks a over b over c, and a router that fetches the ranking often."""
    rows = [utilization_row(name, active=active) for name, active in (("a", 9), ("b", 6), ("c", 3))]
    with Upstream(models=models_feed(["a", "b", "c"]), rows=rows) as upstream:
        yield upstream


def promote(router, upstream, name):
    """Make `name` the best of the ranking and wait until the router knows."""
    upstream.rows = [utilization_row(n, active=30 if n == name else 3) for n in ("a", "b", "c")]
    token = {"Authorization": f"Bearer probe for {name} {len(upstream.exchanges)}"}
    for _ in range(500):
        if picked(router.chat(ALIAS, headers=token)) == name:
            return
        token = {"Authorization": f"Bearer probe {len(upstream.exchanges)}"}
    raise AssertionError(f"{name} was never ranked first")


def test_a_client_keeps_its_model_while_the_ranking_changes(ranked):
    """005-R3, 005-R4"""
    with Router(ranked.url, UTILIZATION_REFRESH_MS="20") as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat(ALIAS, headers=mine)) == "a"
        promote(router, ranked, "b")
        assert picked(router.chat(ALIAS, headers=mine)) == "a"
        assert picked(router.chat(ALIAS, headers={"Authorization": "Bearer new"})) == "b"
        # A list's order is the client's own, whatever an alias has chosen.
        assert picked(router.chat("c,a,b", headers=mine)) == "c"


def test_a_failure_moves_the_client_off_its_model(ranked):
    """005-R5"""
    with Router(ranked.url) as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat(ALIAS, headers=mine)) == "a"
        ranked.on("a", unavailable)
        assert picked(router.chat(ALIAS, headers=mine)) == "b"
        ranked.on("a", complete(b"{}"))
        assert picked(router.chat(ALIAS, headers=mine)) == "b"


def test_a_failure_of_the_edge_leaves_the_client_with_its_model(ranked):
    """005-R5, 002-R67: this request had to move, and header, log and counter say so alike."""
    with Router(ranked.url) as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat(ALIAS, headers=mine)) == "a"
        for script in (reset_at_once, complete(b"<html>", status=503)):
            ranked.on("a", script)
            assert picked(asked := router.chat(ALIAS, headers=mine)) == "b"
            assert told_of_choice(router, asked) == ("moved", "moved")
            ranked.on("a", complete(b"{}"))
            assert picked(asked := router.chat(ALIAS, headers=mine)) == "a"
            assert told_of_choice(router, asked) == ("hit", "hit")
        counted = router.metrics_at_rest()
        assert [counted["sticky_total", what] for what in ("miss", "hit", "moved", "ignored")] == [
            1, 2, 2, 0]


def test_429_and_other_statuses_change_nothing(ranked):
    """005-R5"""
    with Router(ranked.url) as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat("b,a", headers=mine)) == "b"
        for status in (429, 401, 500):
            ranked.on("b", complete(b"no", status=status))
            assert router.chat(ALIAS, headers=mine).status == status
        ranked.on("b", complete(b"{}"))
        assert picked(router.chat(ALIAS, headers=mine)) == "b"


def test_a_choice_that_is_no_candidate_is_ignored_and_kept(ranked):
    """005-R3"""
    with Router(ranked.url) as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat("c,a", headers=mine)) == "c"
        ranked.on("b", complete(b"no", status=429))
        assert router.chat("b,a", headers=mine).status == 429
        assert picked(router.chat(ALIAS, headers=mine)) == "c"


def test_direct_requests_neither_use_nor_change_a_choice(ranked):
    """005-R3"""
    with Router(ranked.url) as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat("c,a", headers=mine)) == "c"
        assert router.chat("b", headers=mine).status == 200
        assert picked(router.chat(ALIAS, headers=mine)) == "c"


@pytest.mark.parametrize("settings", [{"STICKY_TTL_SECS": "0"}, {"STICKY_MAX_ENTRIES": "0"}])
def test_0_switches_stickiness_off(ranked, settings):
    """005-R6"""
    with Router(ranked.url, **settings) as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat("c,a", headers=mine)) == "c"
        assert picked(router.chat(ALIAS, headers=mine)) == "a"


@pytest.mark.parametrize("settings, sticks", [
    ({}, True),
    ({"TRUST_PROXY_HEADERS": "on", "TRUSTED_PROXY_CIDRS": "127.0.0.0/8"}, False),
    ({"TRUST_PROXY_HEADERS": "on", "TRUSTED_PROXY_CIDRS": "10.0.0.0/8"}, True),
    ({"TRUST_PROXY_HEADERS": "off", "TRUSTED_PROXY_CIDRS": "127.0.0.0/8"}, True),
])
def test_without_a_token_the_address_counts_and_a_trusted_peer_may_name_it(
        ranked, settings, sticks):
    """005-R1, 005-R2"""
    with Router(ranked.url, **settings) as router:
        router.wait_until_fed()
        assert picked(router.chat("c,a", headers={"X-Forwarded-For": "192.0.2.1, 10.0.0.1"})) == "c"
        other = router.chat(ALIAS, headers={"X-Forwarded-For": "192.0.2.2, 10.0.0.1"})
        assert picked(other) == ("c" if sticks else "a")
        same = router.chat(ALIAS, headers={"X-Forwarded-For": "192.0.2.1:4711"})
        assert picked(same) == "c"


def test_conversations_that_share_a_token_each_keep_a_model_of_their_own(ranked):
    """005-R14"""
    with Router(ranked.url, UTILIZATION_REFRESH_MS="20") as router:
        router.wait_until_fed()
        shared = {"Authorization": "Bearer shared"}

        def ask(key=None, **headers):
            more = {} if key is None else {"prompt_cache_key": key}
            return picked(router.chat(ALIAS, headers=shared | headers, **more))
        assert {ask(), ask("one"), ask(X_Session_Id="two"), ask(**{"X-Session-Id": "three"}),
                ask(**{"x-litellm-session-id": "four"})} == {"a"}
        promote(router, ranked, "b")
        # A name with an underscore is dropped by the server: those two are one conversation.
        assert {ask(), ask("one"), ask(X_Session_Id="new"), ask(**{"X-SESSION-ID": "three"}),
                ask("any", **{"x-litellm-session-id": "four"})} == {"a"}
        assert {ask("two"), ask(**{"X-Session-Id": "one more"})} == {"b"}
        assert ask("one", **{"X-Session-Id": "another"}) == "b"
        assert ask(7) == "a"


def test_the_headers_that_tell_conversations_apart_can_be_named(ranked):
    """005-R14"""
    with Router(ranked.url, UTILIZATION_REFRESH_MS="20",
                STICKY_SESSION_HEADERS="x-thread") as router:
        router.wait_until_fed()
        shared = {"Authorization": "Bearer shared"}
        assert picked(router.chat(ALIAS, headers=shared | {"X-Thread": "1"})) == "a"
        assert picked(router.chat(ALIAS, headers=shared | {"X-Session-Id": "1"})) == "a"
        promote(router, ranked, "b")
        assert picked(router.chat(ALIAS, headers=shared | {"X-Session-Id": "2"})) == "a"
        assert picked(router.chat(ALIAS, headers=shared | {"X-Thread": "2"})) == "b"


def test_a_list_begins_with_what_its_failover_found_for_a_while_and_use_does_not_renew_it(ranked):
    """005-R16, 005-R17"""
    with Router(ranked.url, STICKY_RETURN_SECS="1") as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        ranked.on("c", unavailable)
        began = time.monotonic()
        assert picked(router.chat("c,a,b", headers=mine)) == "a"
        ranked.on("c", complete(b"{}"))
        found = []
        until(lambda: found.append(picked(router.chat("c,a,b", headers=mine))) or "c" in found)
        # It was in use all the time.
        assert found == ["a"] * (len(found) - 1) + ["c"] and len(found) > 2
        assert time.monotonic() - began >= 1
        assert picked(router.chat("b,c", headers=mine)) == "b"


def test_0_lets_a_list_begin_at_its_head_at_once(ranked):
    """005-R16"""
    with Router(ranked.url, STICKY_RETURN_SECS="0") as router:
        router.wait_until_fed()
        ranked.on("c", unavailable)
        assert picked(router.chat("c,a")) == "a"
        ranked.on("c", complete(b"{}"))
        assert picked(router.chat("c,a")) == "c"


def test_what_an_alias_has_found_by_failover_reorders_no_list(ranked):
    """005-R16"""
    with Router(ranked.url) as router:
        router.wait_until_fed()
        ranked.on("a", unavailable)
        assert picked(router.chat(ALIAS)) == "b"
        ranked.on("a", complete(b"{}"))
        assert picked(router.chat(ALIAS)) == "b"
        assert picked(router.chat("a,b")) == "a"


def test_a_model_that_is_full_is_passed_over_and_its_clients_come_back(ranked):
    """005-R15, 002-R52"""
    with Router(ranked.url, UTILIZATION_REFRESH_MS="20") as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat(ALIAS, headers=mine)) == "a"
        usual = ranked.rows
        ranked.rows = [utilization_row("a", active=9, u5=0.96, r5=0.06), *usual[1:]]
        answers = []

        def moves_to(name):
            answers.append(router.chat(ALIAS, headers=mine | {"X-Request-Id": "passed-over"}))
            return picked(answers[-1]) == name
        until(lambda: moves_to("b"))
        assert answers[-1].value("x-chutes-autopilot-skipped") == "a;full"
        assert router.record("passed-over")["sticky"] in ("hit", "ignored")
        # The choice was kept: the client comes back, though others are sent to b now.
        ranked.rows = [utilization_row("a", active=3), *usual[1:]]
        until(lambda: moves_to("a"))
        assert answers[-1].values("x-chutes-autopilot-skipped") == []
        assert picked(router.chat(ALIAS, headers={"Authorization": "Bearer new"})) == "b"


def test_a_model_for_which_too_many_wait_is_passed_over_and_its_client_comes_back(ranked):
    """005-R15, 002-R67, 007-R22"""
    with Router(ranked.url, MAX_INFLIGHT_REQUESTS="8",
                UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS="60000") as router:
        router.wait_until_fed()
        mine = {"Authorization": "Bearer mine"}
        assert picked(router.chat(ALIAS, headers=mine)) == "a"
        ranked.on("a", stall)
        with contextlib.ExitStack() as others:
            for _ in range(4):
                other = others.enter_context(contextlib.closing(router.connect()))
                other.request("POST", "/v1/chat/completions", b'{"model": "a"}')
            ranked.wait_for("a", 5)
            answer = router.chat(ALIAS, headers=mine)
            assert picked(answer) == "b"
            assert answer.value("x-chutes-autopilot-skipped") == "a;full"
            assert told_of_choice(router, answer) == ("ignored", "ignored")
        until(lambda: router.metrics()["requests_active",] == 0)
        ranked.on("a", complete(b"{}"))
        answer = router.chat(ALIAS, headers=mine)
        assert picked(answer) == "a" and told_of_choice(router, answer) == ("hit", "hit")

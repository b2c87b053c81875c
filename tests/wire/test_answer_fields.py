"""What an answer's header fields say of how it came about."""

import re

import pytest

from tests.support.router import Router
from tests.support.upstream import complete, reset_at_once, stall, unavailable

PREFIX = "x-chutes-autopilot-"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def asked(router, names):
    """Ask as a client that nobody knows yet."""
    return router.chat(names, headers={"Authorization": f"Bearer {names}"})


def told(answer):
    """Return the fields that say it, by what follows the common prefix."""
    return {name.lower().removeprefix(PREFIX): value for name, value in answer.fields
            if name.lower().startswith(PREFIX)}


def timing(answer):
    """Return the milliseconds of the last Server-Timing field, by name."""
    value = [value for name, value in answer.fields if name.lower() == "server-timing"][-1]
    assert re.fullmatch(r"router;dur=\d+\.\d, upstream;dur=\d+\.\d", value)
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", value)}


def test_the_first_candidates_answer_says_that_nothing_was_passed_over(router, upstream, model):
    """002-R17, 002-R52, 002-R67"""
    first, second = model(), model()
    upstream.on(first, complete(b"{}"))
    client = {"Authorization": f"Bearer {first}"}
    answer = router.chat(f"{first},{second}", headers=client)
    assert told(answer) == {"selected": first, "attempts": "1", "sticky": "miss"}
    assert told(router.chat(f"{first},{second}", headers=client))["sticky"] == "hit"


def test_what_was_tried_in_vain_is_named_with_the_reason_behind_what_is_unknown(
        router, upstream, model):
    """002-R52, 002-R67"""
    one, two, three = model(), model(), model()
    upstream.on(one, unavailable)
    upstream.on(two, reset_at_once)
    upstream.on(three, complete(b"{}"))
    assert told(asked(router, f"gone/One,{one},{two},{three}")) == {
        "selected": three, "attempts": "3", "sticky": "miss",
        "skipped": f"gone/One;unknown_model, {one};upstream_503, {two};upstream_connect_error"}


def test_a_failure_passed_on_and_an_error_made_here_name_the_last_one_tried(
        router, upstream, model):
    """002-R17, 002-R67"""
    one, two = model(), model()
    upstream.on(one, unavailable)
    upstream.on(two, unavailable)
    expected = {"selected": two, "attempts": "2", "sticky": "miss",
                "skipped": f"{one};upstream_503"}
    answer = asked(router, f"{one},{two}")
    assert (answer.status, told(answer)) == (503, expected)
    upstream.on(two, stall)
    answer = asked(router, f"{one},{two}")
    assert (answer.status, told(answer)) == (504, expected)


def test_a_choice_that_fails_has_moved_and_one_that_is_no_candidate_is_ignored(
        router, upstream, model):
    """002-R67"""
    one, two, three = model(), model(), model()
    for each in (one, two, three):
        upstream.on(each, complete(b"{}"))
    client = {"Authorization": f"Bearer {one}"}
    assert told(router.chat(f"{one},{two}", headers=client))["sticky"] == "miss"
    assert told(router.chat(f"{two},{three}", headers=client))["sticky"] == "ignored"
    client = {"Authorization": f"Bearer {two}"}
    router.chat(f"{one},{two}", headers=client)
    upstream.on(one, unavailable)
    answer = told(router.chat(f"{one},{two}", headers=client))
    assert (answer["sticky"], answer["selected"]) == ("moved", two)


def test_nothing_is_told_in_direct_mode_or_without_an_attempt(router, upstream, model):
    """002-R17, 002-R67: the upstream's own fields of these names neither."""
    name = model()
    upstream.on(name, complete(b"{}", fields=[
        (PREFIX + each, "theirs") for each in ("selected", "attempts", "skipped", "sticky")]))
    assert not told(router.chat(name))
    assert told(asked(router, f"{name},{model()}")) == {
        "selected": name, "attempts": "1", "sticky": "miss"}
    answer = router.chat("gone/One,gone/Two")
    assert answer.status == 400 and not told(answer)
    assert answer.value("Server-Timing") is None


def test_while_stickiness_is_off_nothing_is_said_of_it(upstream, model):
    """002-R67"""
    name = model()
    upstream.on(name, complete(b"{}"))
    with Router(upstream.url, STICKY_TTL_SECS="0") as router:
        router.wait_until_fed()
        assert told(router.chat(f"{name},{model()}")) == {"selected": name, "attempts": "1"}


@pytest.mark.parametrize("before", [[], [("Server-Timing", "cache;dur=3")]])
def test_the_time_is_told_in_every_mode_behind_what_the_upstream_says(
        router, upstream, model, before):
    """002-R68"""
    name = model()
    upstream.on(name, complete(b"{}", fields=before))
    answer = router.chat(name)
    fields = [value for field, value in answer.fields if field.lower() == "server-timing"]
    assert fields[:-1] == [value for _, value in before]
    assert timing(answer)["upstream"] > 0


def test_attempts_that_failed_are_neithers_time(router, upstream, model):
    """002-R68: the model that gave no headers took 600 ms."""
    silent, good = model(), model()
    upstream.on(silent, stall)
    upstream.on(good, complete(b"{}"))
    answer = router.chat(f"{silent},{good}", stream=True)
    assert answer.status == 200
    spent = router.record(answer.value("X-Request-Id"))
    assert sum(timing(answer).values()) < spent["attempts"][0]["ms"]


@pytest.mark.parametrize("traceparent, trace_id", [
    (TRACE, TRACE[3:35]), (TRACE.replace("00-", "cc-", 1) + "-more", TRACE[3:35]),
    (TRACE + "-more", ""), (TRACE.upper(), ""), ("ff" + TRACE[2:], ""), ("x", ""),
    (TRACE.replace(TRACE[3:35], "0" * 32), ""), (TRACE.replace("b7ad6b7169203331", "0" * 16), "")])
def test_a_trace_passes_and_the_id_of_a_valid_one_is_logged(
        router, upstream, model, traceparent, trace_id):
    """002-R69"""
    name = model()
    upstream.on(name, complete(b"{}", fields=[("X-Chutes-InvocationID", "their-own-id")]))
    answer = router.chat(name, headers={"traceparent": traceparent, "tracestate": "a=b"})
    fields = dict(upstream.exchanges[-1].fields)
    assert (fields["traceparent"], fields["tracestate"]) == (traceparent, "a=b")
    line = router.record(answer.value("X-Request-Id"))
    assert (line["trace_id"], line["invocation_id"]) == (trace_id, "their-own-id")


def test_an_id_of_the_upstreams_that_is_none_is_not_logged(router, upstream, model):
    """002-R69"""
    name = model()
    upstream.on(name, complete(b"{}", fields=[("X-Chutes-InvocationID", "a b")]))
    answer = router.chat(name)
    assert answer.value("X-Chutes-InvocationID") == "a b"
    assert router.record(answer.value("X-Request-Id"))["invocation_id"] == ""

"""The upstream's errors, as clients in wide use show them."""

import json

import pytest

from tests.support.upstream import complete

JSON = [("Content-Type", "application/json")]
ERRORS = {
    400: ("This model's maximum context length is 40960 tokens.", "invalid_request_error"),
    401: ("Invalid token.", "authentication_error"),
    402: ("Quota exceeded and account balance is 0.", "insufficient_quota"),
    429: ("Infrastructure is at maximum capacity, try again later", "rate_limit_error"),
    500: ("exhausted all available targets to no avail", "server_error"),
}


@pytest.mark.parametrize("way", ["chat", "stream"])
@pytest.mark.parametrize("status", ERRORS)
def test_the_user_reads_the_upstreams_own_words(client, upstream, model, status, way):
    """002-R25"""
    name = model()
    words, type_ = ERRORS[status]
    body = json.dumps({"detail": words}).encode()
    upstream.on(name, complete(body, status=status, fields=JSON))
    seen = client(way, name)
    assert words in seen["shown"]
    if client.name != "llm":
        assert seen["status"] == status
    if client.name.startswith("openai"):
        assert seen["type"] == type_


@pytest.mark.parametrize("client", ["openai_python", "openai_node"], indirect=True)
def test_a_detail_that_is_an_object_is_shown_by_its_message(client, upstream, model):
    """002-R25"""
    name = model()
    detail = {"message": "Daily quota used up.", "quota_reset_timestamp": "2026-02-19T00:00:00Z"}
    upstream.on(name, complete(json.dumps({"detail": detail}).encode(), status=402, fields=JSON))
    shown = client("chat", name)["shown"]
    assert detail["message"] in shown and "quota_reset_timestamp" not in shown

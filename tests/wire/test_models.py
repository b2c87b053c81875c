"""GET /v1/models and /v1/models/{id}, over real sockets."""

import json
import re

import pytest

from tests.support.feeds import bare_entry, model_entry, models_feed, utilization_row
from tests.support.router import Router, free_port, until
from tests.support.upstream import Upstream
from tests.wire.conftest import SHORT

PLAIN, OTHER, SHADOWED = "quarry/Plain-8B", "lumen-ai/Other-1B", "harbor/Old-3B"
# As a feed may write it: not as this test would.
RAW = b'{"id":"tallgrass/Raw-9B-TEE" ,"price":{"usd":1.10},"big":1e400,"text":"\\u00e9\\/"}'
FEED = b'{"object":"list","data":[%s, %s,%s ,%s]}' % (
    RAW, *(json.dumps(entry).encode() for entry in (
        model_entry(PLAIN, context_length=40_960), bare_entry(OTHER, max_model_len=8_192),
        model_entry(SHADOWED))))
ALIASES = f"""
[[alias]]
name = "gpt-4o"
models = ["{PLAIN}", "{OTHER}"]
[[alias]]
name = "unsure"
models = ["{PLAIN}", "tallgrass/*"]
[[alias]]
name = "{SHADOWED}"
models = ["{PLAIN}"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("etc") / "aliases.toml"
    path.write_text(ALIASES)
    rows = [utilization_row(name) for name in (PLAIN, OTHER, "tallgrass/Raw-9B-TEE")]
    health = free_port()
    with Upstream(models=FEED, rows=rows) as upstream, Router(
            upstream.url, **SHORT, ALIASES_FILE=str(path),
            HEALTH_LISTEN_ADDR=f"127.0.0.1:{health}") as router:
        router.wait_until_fed()
        router.health_port = health
        yield router


def test_the_list_has_the_aliases_and_the_feeds_entries_as_they_came(site):
    """002-R54"""
    answer = site.get("/v1/models")
    assert (answer.status, answer.value("Content-Type")) == (200, "application/json")
    assert RAW in answer.body
    other = re.escape(json.dumps(bare_entry(OTHER, 8_192)).encode())
    assert re.search(rb"[ ,\[]" + other + rb"[,\]]", answer.body)
    listed = json.loads(answer.body)
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == [
        "chutesai/AutoPilot", "chutesai-routing/AutoPilot", "gpt-4o", "unsure", SHADOWED,
        "tallgrass/Raw-9B-TEE", PLAIN, OTHER]
    assert listed["data"][2] == {"id": "gpt-4o", "object": "model", "created": 0,
                                 "owned_by": "chutes-router", "context_length": 8_192}
    # One of its pool does not say.
    assert "context_length" not in listed["data"][3]
    assert len(answer.values("Date")) == 1


def test_an_id_may_have_slashes_anywhere():
    """002-R54"""
    with Upstream(models=models_feed(["/rooted/A", "/", "x//y/"])) as upstream, Router(
            upstream.url) as router:
        until(lambda: router.get("/v1/models").status == 200)
        for path, id in (("/rooted/A", "/rooted/A"), ("%2Frooted%2FA", "/rooted/A"), ("/", "/"),
                         ("%2F", "/"), ("x//y/", "x//y/")):
            answer = router.get(f"/v1/models/{path}")
            assert (answer.status, json.loads(answer.body)["id"]) == (200, id)
            assert router.get(f"/v1/models/{path}x").error["code"] == "model_not_found"
        assert router.get("/v1/models/").error["code"] == "not_found"


@pytest.mark.parametrize("path", ["tallgrass/Raw-9B-TEE", "tallgrass%2FRaw-9B-TEE",
                                  "%74allgrass/Raw%2D9B-TEE"])
def test_one_model_is_its_entry_percent_encoded_or_not(site, path):
    """002-R54"""
    answer = site.get(f"/v1/models/{path}")
    assert (answer.status, answer.body) == (200, RAW)


def test_an_alias_is_a_model_and_wins_over_one_of_its_name(site):
    """002-R54"""
    for name in ("gpt-4o", SHADOWED, "chutesai%2FAutoPilot"):
        entry = json.loads(site.get(f"/v1/models/{name}").body)
        assert entry["owned_by"] == "chutes-router"


@pytest.mark.parametrize("name", [
    "nobody", "quarry", f"{PLAIN}/x", f"{PLAIN}:x", "a%20b%00", "%ff",
    "%ed%a0%80", "/rooted", "\\ud800"])
def test_another_name_is_not_found(site, name):
    """002-R54, 002-R21"""
    answer = site.get(f"/v1/models/{name}")
    assert answer.status == 404
    assert answer.error == {"message": answer.error["message"], "type": "invalid_request_error",
                            "param": "model", "code": "model_not_found"}
    assert name not in answer.error["message"] and answer.body.isascii()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/" + PLAIN, "/v1/models/gpt-4o"])
def test_what_has_not_changed_is_not_sent_again(site, path):
    """002-R54"""
    whole = site.get(path)
    etag = whole.value("ETag")
    for given, status in ((etag, 304), ("*", 304), (f'"x", W/{etag}', 304), ('"x"', 200)):
        answer = site.get(path, {"If-None-Match": given})
        assert (answer.status, answer.value("ETag")) == (status, etag)
        assert answer.body == (b"" if status == 304 else whole.body)
    head = site.get(path, method="HEAD")
    assert (head.status, head.body, head.value("ETag")) == (200, b"", etag)
    assert int(head.value("Content-Length")) == len(whole.body)


def test_another_method_is_refused(site):
    """002-R21"""
    answer = site.post(b"{}", path="/v1/models")
    assert (answer.status, answer.value("Allow")) == (405, "GET, HEAD")


def test_the_health_address_has_no_models(site):
    """007-R2"""
    for path in ("/v1/models", "/v1/models/" + PLAIN, "/v1/completions"):
        answer = site.get(path, port=site.health_port)
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        assert "/healthz" in answer.error["message"] and "/v1" not in answer.error["message"]


def test_a_path_without_a_route_is_told_the_routes(site):
    """002-R21"""
    message = site.get("/chat/completions").error["message"]
    for route in ("POST /v1/chat/completions", "POST /v1/completions", "GET/HEAD /v1/models;",
                  "GET/HEAD /v1/models/{id}", "/healthz", "/readyz", "/metrics"):
        assert route in message


def of_models(message):
    return lambda line: line["message"] == message and line["feed"] == "models"


def test_before_the_first_feed_there_are_no_models_and_after_the_last_there_still_are():
    """002-R54"""
    with Upstream(models=models_feed([PLAIN])) as upstream:
        upstream.feed_status = 500
        with Router(upstream.url, MODELS_REFRESH_MS="50", STICKY_TTL_SECS="0") as router:
            for path in ("/v1/models", "/v1/models/" + PLAIN):
                answer = router.get(path)
                assert (answer.status, answer.error["code"], answer.error["type"]) == (
                    503, "missing_allowlist", "server_error")
                assert 1 <= int(answer.value("Retry-After")) <= 15
            router.wait_for_lines(of_models("feed refresh fails"))
            upstream.feed_status = 200
            router.wait_for_lines(of_models("feed refresh works again"))
            upstream.feed_status = 500
            router.wait_for_lines(of_models("feed refresh fails"), 2)
            assert json.loads(router.get("/v1/models/" + PLAIN).body)["id"] == PLAIN


def test_no_key_is_asked_for_and_the_upstream_is_not_asked(site):
    """002-R54"""
    assert site.get("/v1/models", {"Authorization": "Bearer x"}).body == site.get("/v1/models").body

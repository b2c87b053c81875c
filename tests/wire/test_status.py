"""The status page, as JSON and in a real browser."""

import json
import re

import pytest

from tests.support.browser import Browser
from tests.support.feeds import model_entry, models_feed, utilization_row
from tests.support.nginx import Nginx
from tests.support.router import Router, free_port, until
from tests.support.upstream import Upstream, complete

LONG = "maker/" + "Very-Long-Name-" * 30 + "8B"
MARKUP = "<script>window.hacked=1</script>'\"><img src=x onerror=window.hacked=1>&lt;b&gt;"
NAMES = ["best/Model-TEE", "down/Model", LONG, MARKUP]
KEYS = ["version", "started", "feeds", "aliases", "models", "requests", "recent", "catalogue",
        "configuration"]
CANDIDATE = {"model", "score", "parts", "instances", "utilization", "tier", "fit", "missing",
             "cooling_s", "in_band", "open"}
ALIASES = """
[[alias]]
name = "gpt-4o"
tiers = [["down/*"], ["*"]]
[[alias]]
name = "nobody"
models = ["none/*"]
"""
HTML = {"Accept": "text/html"}


def rows(names):
    return [utilization_row(name, active=40 - place, u5=place / len(names))
            for place, name in enumerate(names)]


@pytest.fixture(scope="module")
def upstream():
    with Upstream(models=models_feed(list(map(model_entry, NAMES))), rows=rows(NAMES)) as upstream:
        upstream.on("down/Model", complete(b"{}", status=503))
        yield upstream


@pytest.fixture(scope="module")
def router(upstream, tmp_path_factory):
    aliases = tmp_path_factory.mktemp("aliases") / "aliases.toml"
    aliases.write_text(ALIASES)
    port = free_port()
    with Router(upstream.url, WEB_CONCURRENCY="2", ALIASES_FILE=str(aliases),
                HEALTH_LISTEN_ADDR=f"127.0.0.1:{port}", COOLDOWN_SECS="0",
                UTILIZATION_REFRESH_MS="200",
                MODELS_REFRESH_MS="200", STICKY_HASH_SECRET="planted") as router:
        router.health_port = port
        router.wait_until_fed()
        for model in ("down/Model", "down/Model", "down/Model", "best/Model-TEE", LONG, MARKUP,
                      "gpt-4o", "chutesai/AutoPilot", f"down/Model,{LONG}"):
            router.chat(model)
        until(lambda: len(status(router)["recent"]) == 9)
        yield router


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def status(router):
    return json.loads(router.get("/status").body)


def page(router):
    return f"http://127.0.0.1:{router.port}/status"


def test_the_json_has_its_keys(router):
    """008-R9"""
    shown = status(router)
    assert list(shown) == KEYS
    assert {feed["name"] for feed in shown["feeds"]} == {"models", "utilization"}
    for alias in shown["aliases"]:
        assert set(alias) == {"name", "count", "candidates"}
        assert alias["count"] == len(alias["candidates"])
        assert all(set(candidate) == CANDIDATE for candidate in alias["candidates"])
    assert shown["configuration"]["STICKY_HASH_SECRET"] == "****"
    assert shown["configuration"]["WEB_CONCURRENCY"] == "2"


def test_the_candidates_are_in_the_order_in_which_they_are_tried(router):
    """008-R9"""
    orders = {alias["name"]: [each["model"] for each in alias["candidates"]]
              for alias in status(router)["aliases"]}
    assert orders == {"chutesai/AutoPilot": NAMES, "chutesai-routing/AutoPilot": NAMES,
                      "gpt-4o": [NAMES[1], NAMES[0], *NAMES[2:]], "nobody": []}
    [best, *_] = status(router)["aliases"][0]["candidates"]
    assert (best["instances"], best["score"], best["tier"]) == (40, best["parts"]["free"], 0)


@pytest.mark.parametrize("accept, kind", [
    (None, "json"), ("*/*", "json"), ("application/json", "json"), ("text/plain", "json"),
    ("text/html", "html"), ("text/html;q=0.5, application/json", "json"), ("nonsense;;q=", "json"),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "html")])
def test_html_is_for_those_who_prefer_it(router, accept, kind):
    """008-R8"""
    answer = router.get("/status", {} if accept is None else {"Accept": accept})
    assert kind in answer.value("Content-Type") and answer.status == 200
    assert answer.value("Vary") == "Accept"
    assert answer.body.startswith(b"<!doctype html>" if kind == "html" else b"{")


@pytest.mark.parametrize("headers", [{}, HTML])
def test_the_answer_may_not_be_kept_nor_bring_anything_with_it(router, headers):
    """008-R13"""
    answer = router.get("/status", headers)
    policy = answer.value("Content-Security-Policy")
    assert answer.value("Cache-Control") == "no-store"
    assert answer.value("X-Content-Type-Options") == "nosniff"
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and policy.count("sha256-") == 2


def test_it_is_on_both_addresses_and_takes_get_and_head(router):
    """008-R8"""
    assert list(json.loads(router.get("/status", port=router.health_port).body)) == KEYS
    assert router.get("/status", method="HEAD").body == b""
    assert router.get("/status", method="POST").status == 405
    assert "GET/HEAD" in router.get("/none").error["message"]


def test_asking_changes_nothing(router):
    """008-R8"""
    before = router.counted_since({})
    for _ in range(3):
        router.get("/status", HTML)
    assert router.counted_since({}) == before


def test_the_page_says_first_what_is_wrong(router):
    """008-R11"""
    text = router.get("/status", HTML).body.decode()
    said = re.sub(r"<.*?>", "", text.partition("<main>")[2].partition("</section>")[0])
    assert "The router is not well" in said and "nobody has no model" in said
    assert "down/Model fails: 5 × 503 in 5 attempts." in said


def test_a_catalogue_that_changes_and_a_feed_that_fails_are_told(upstream, router):
    """008-R5, 008-R9"""
    upstream.models = models_feed([*NAMES, "new/Model"])
    until(lambda: [(each["model"], each["change"]) for each in status(router)["catalogue"]]
          == [("new/Model", "appeared")])
    upstream.feed_status = 500
    until(lambda: all(feed["failing"] and "500" in feed["last_failure"]["why"]
                      for feed in status(router)["feeds"]))
    assert "feed cannot be fetched" in router.get("/status", HTML).body.decode()
    upstream.feed_status, upstream.models = 200, models_feed(NAMES)
    until(lambda: not any(feed["failing"] for feed in status(router)["feeds"]))
    assert all(feed["last_failure"] for feed in status(router)["feeds"])


def test_a_model_that_cools_is_told_with_its_reason(upstream, browser):
    """008-R9, 008-R11"""
    with Router(upstream.url, COOLDOWN_SECS="60") as router:
        router.wait_until_fed()
        for _ in range(3):
            router.chat("down/Model")
        [alias, _] = status(router)["aliases"]
        assert alias["candidates"][-1]["model"] == "down/Model"
        assert 40 < alias["candidates"][-1]["cooling_s"] <= 72
        tab = browser.open(page(router))
        said = tab.run("document.querySelector('.verdict').innerText")
        assert re.search(r"down/Model is cooling for \S+ .*more: 3 × 503 in 3 attempts\.", said)


def colour_of(tab, selector, name):
    """Return a computed colour as three numbers."""
    text = tab.run(f"getComputedStyle(document.querySelector({json.dumps(selector)})).{name}")
    return [int(part) for part in re.findall(r"\d+", text)][:3]


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("script", [False, True])
def test_the_page_is_readable_in_any_window(router, browser, width, dark, script):
    """008-R12, 008-R13, 008-R14"""
    tab = browser.open(page(router), width=width, dark=dark, script=script)
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.run("document.scrollingElement.scrollWidth") <= width
    assert (sum(colour_of(tab, "body", "backgroundColor")) < 200) is dark
    assert tab.run("document.querySelector('h1').innerText") == "✗ The router is not well"
    assert tab.run("document.getElementById('pause').hidden") is not script
    assert tab.run("window.hacked") is None and tab.run("document.images.length") == 0
    assert tab.complaints == [] and {
        url for url in tab.requested if not url.startswith("data:")} == {page(router)}


def test_names_are_shown_as_they_are(router, browser):
    """008-R14"""
    tab = browser.open(page(router))
    shown = tab.run("[...document.querySelectorAll('#pool-1 .model')].map(each => each.innerText)")
    assert shown == NAMES
    assert tab.run("getComputedStyle(document.querySelector('.model')).unicodeBidi") == "isolate"


def test_the_page_can_be_used_with_the_keyboard(router, browser):
    """008-R12"""
    tab = browser.open(page(router))
    reached = []
    for _ in range(5):
        tab.press("Tab", 9)
        reached.append(tab.run("document.activeElement.id"))
    assert reached == ["pause", "pool-1-name", "pool-2-name", "pool-3-name", "variables-name"]
    assert tab.run("document.getElementById('variables').open") is False
    tab.press("Enter", 13)
    assert tab.run("document.getElementById('variables').open") is True
    outline = tab.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_page_refreshes_itself_and_keeps_what_is_opened_and_focused(router, browser):
    """008-R12"""
    tab = browser.open(page(router))
    tab.run("document.getElementById('pool-2').open = true;"
            "document.getElementById('pool-2-name').focus(); window.first = true")
    router.chat("best/Model-TEE", headers={"X-Request-Id": "refreshed"})
    before = tab.run("document.querySelector('.figures dd').innerText")
    tab.until(f"document.querySelector('.figures dd').innerText !== {json.dumps(before)}")
    assert tab.run("window.first") is True
    assert tab.run("document.getElementById('pool-2').open") is True
    assert tab.run("document.activeElement.id") == "pool-2-name"
    assert tab.complaints == []


def test_a_page_whose_router_is_gone_says_so(upstream, browser):
    """008-R12"""
    with Router(upstream.url) as router:
        router.wait_until_fed()
        tab = browser.open(page(router))
        assert tab.run("document.getElementById('lost').innerText") == ""
    tab.until("document.getElementById('lost').innerText.includes('cannot be reached')")


def test_the_page_works_behind_a_prefix(router, browser):
    """008-R12, 008-R16"""
    with Nginx(f"127.0.0.1:{router.port}", locations="""
    location /tools/router/ {
        proxy_pass http://chutes_router/;
    }
""") as nginx:
        url = f"http://127.0.0.1:{nginx.port}/tools/router/status"
        tab = browser.open(url)
        before = tab.run("document.querySelector('.figures dd').innerText")
        router.chat("best/Model-TEE")
        tab.until(f"document.querySelector('.figures dd').innerText !== {json.dumps(before)}")
        assert {each for each in tab.requested if not each.startswith("data:")} == {url}
        assert tab.complaints == []

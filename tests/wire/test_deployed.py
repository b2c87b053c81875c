"""The image, really built and run, and a real Prometheus at the router's door."""

import json
import pathlib
import re
import shutil
import subprocess
import urllib.request

import pytest
import redis
import yaml
from packaging.utils import canonicalize_name

from tests.support.feeds import models_feed, utilization_row
from tests.support.image import Contained, Image, pins
from tests.support.nginx import executable
from tests.support.router import ROOT, Router, free_port, until
from tests.support.upstream import Upstream, complete

FEED = {"models": models_feed(["a"]), "rows": [utilization_row("a")]}
USER = 10001


@pytest.fixture(scope="module")
def image():
    with Image() as built:
        yield built


def test_the_image_serves_as_an_unprivileged_user_on_a_read_only_root(image):
    """007-R8"""
    assert image.config["User"] == f"{USER}:{USER}" and image.config["StopSignal"] == "SIGTERM"
    assert set(image.config["ExposedPorts"]) == {"8080/tcp", "8081/tcp"}
    health = free_port()
    with Upstream(**FEED) as upstream:
        upstream.on("a:image", complete(b'{"from": "upstream"}'))
        with Contained(image, upstream.url, HEALTH_LISTEN_ADDR=f"127.0.0.1:{health}",
                       STATE_DIR="/tmp") as router:
            router.wait_until_fed()
            answer = router.chat("a:image")
            assert (answer.status, answer.body) == (200, b'{"from": "upstream"}')
            assert router.get("/healthz", port=health).body == b"ok"
            assert router.get("/readyz", port=health).status == 200
            assert router.chat("a", port=health).status == 404
            process = pathlib.Path("/proc", str(router.master()))
            assert process.stat().st_uid == USER
            assert re.search(r"^NSpid:\t\d+\t1$", (process / "status").read_text(), re.M)
            [root] = re.findall(r"^\S+ / \S+ (\w+),", (process / "mounts").read_text(), re.M)
            assert root == "ro"
            assert router.places_written_to() <= {
                (process / "root" / place).stat().st_dev for place in ("tmp", "dev/shm")}
            assert router.stop() == 0
    assert {line["level"] for line in router.lines} <= {"DEBUG", "INFO"}


def test_the_image_holds_the_router_compiled_and_what_is_pinned_and_no_more(image):
    """007-R8"""
    home = image.root / "srv" / "router"
    assert {path.name for path in home.iterdir()} == {
        ".venv", "app", "gunicorn.conf.py", "requirements.txt"}
    sources = list((home / "app").rglob("*.py"))
    assert len(sources) == len(list((home / "app").rglob("__pycache__/*.pyc"))) > 0
    assert not [path for path in home.rglob("*") if path.lstat().st_uid == USER]
    # The secret of the build.
    assert not (image.root / "etc" / "pip.conf").exists()
    [packages] = home.glob(".venv/lib/python3.*/site-packages")
    installed = {canonicalize_name(path.name.split("-")[0])
                 for path in packages.glob("*.dist-info")}
    assert "flask" in installed
    assert installed - {"pip", "setuptools"} <= {canonicalize_name(pin.name) for pin in pins()}


def composed():
    """Return compose's services, the variables that one gives it filled in."""
    text = (ROOT / "deploy" / "docker" / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]*\}", r"given\1", text))["services"]


def test_composes_redis_asks_for_its_password_and_the_router_has_it(tmp_path):
    """007-R8, 005-R9"""
    port, services = free_port(), composed()
    given = services["router"]["environment"]
    url = given["STICKY_URL"].replace("redis:6379", f"127.0.0.1:{port}")
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [*services["redis"]["command"], "--port", str(port), "--bind", "127.0.0.1",
             "--dir", str(tmp_path)], stdout=log, stderr=log)
    try:
        until(lambda: b"Ready to accept" in (tmp_path / "log").read_bytes())
        with Upstream(**FEED) as upstream, Router(
                upstream.url, STICKY_URL=url,
                STICKY_HASH_SECRET=given["STICKY_HASH_SECRET"]) as router:
            router.wait_until_fed()
            with redis.Redis.from_url(url) as insider:
                # A request that finds no connection yet may not wait for one to be made.
                until(lambda: router.chat("chutesai/AutoPilot").status == 200 and insider.dbsize())
        with redis.Redis(port=port) as outsider, pytest.raises(redis.AuthenticationError):
            outsider.dbsize()
    finally:
        server.terminate()
        server.wait(10)


def test_the_router_takes_both_families_on_the_addresses_of_the_component_for_ipv6():
    """007-R9"""
    port, health = free_port(), free_port()
    with Upstream(**FEED) as upstream, Router(
            upstream.url, LISTEN_ADDR=f"[::]:{port}",
            HEALTH_LISTEN_ADDR=f"[::]:{health}") as router:
        router.port = port
        router.wait_until_fed()
        assert router.get("/healthz").body == b"ok"
        for address, path in ((port, "healthz"), (health, "healthz"), (health, "readyz")):
            with urllib.request.urlopen(f"http://[::1]:{address}/{path}", timeout=5) as answer:
                assert answer.status == 200


def test_a_real_prometheus_scrapes_the_router(tmp_path):
    """007-R10, 001-R13"""
    health, port = free_port(), free_port()
    shutil.copy(ROOT / "deploy" / "prometheus" / "alerts.yml", tmp_path)
    settings = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    for given, ours in (("127.0.0.1:8081", f"127.0.0.1:{health}"), ("15s", "1s")):
        assert given in settings
        settings = settings.replace(given, ours)
    (tmp_path / "prometheus.yml").write_text(settings)
    with Upstream(**FEED) as upstream, Router(
            upstream.url, HEALTH_LISTEN_ADDR=f"127.0.0.1:{health}") as router:
        router.wait_until_fed()
        assert router.chat("a").status == 200
        with open(tmp_path / "log", "wb") as log:
            prometheus = subprocess.Popen(
                [executable("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
                 f"--storage.tsdb.path={tmp_path / 'data'}",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            def value(query):
                url = f"http://127.0.0.1:{port}/api/v1/query?query={query}"
                try:
                    with urllib.request.urlopen(url, timeout=5) as response:
                        result = json.load(response)["data"]["result"]
                except OSError:
                    assert prometheus.poll() is None, (tmp_path / "log").read_text()
                    return None
                return result[0]["value"][1] if result else None

            until(lambda: value("up") == "1")
            assert value("chutes_autopilot_requests_total{status=%22200%22}") == "1"
            assert value("chutes_autopilot_ready_candidates") == "1"
            assert value("chutes_autopilot_first_byte_seconds_count") == "1"
        finally:
            prometheus.terminate()
            prometheus.wait(10)

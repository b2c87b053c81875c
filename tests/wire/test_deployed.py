"""The image's steps walked without an engine, and a real Prometheus at the router's door."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.nginx import executable
from tests.support.router import ROOT, Router, free_port, until
from tests.support.upstream import Upstream

FEED = {"models": models_feed(["a"]), "rows": [utilization_row("a")]}
USER = 10001


def steps(dockerfile):
    """Return the (instruction, argument) pairs of a Dockerfile without line continuations."""
    lines = dockerfile.read_text().splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def anyones_python():
    """Return the directory of a python3 that any user can run, as the image's is."""
    for path in (pathlib.Path(sys.executable).resolve(), pathlib.Path("/usr/bin/python3")):
        if all(parent.stat().st_mode & 0o001 for parent in path.parents):
            return path.parent
    raise AssertionError("no python3 here can be run by another user")


class Image:
    """A Dockerfile's stages, walked in a directory that stands for the root of the image."""

    def __init__(self, root):
        self.root, self.environment, self.user, self.command = root, {}, None, None
        self.workdir = pathlib.Path("/")

    def walk(self, instructions):
        """Do what the instructions say; a later stage starts on what the one before copied."""
        for instruction, argument in instructions:
            getattr(self, "_" + instruction.lower())(argument)

    def _from(self, argument):
        assert argument.split()[0] == "python:3.11-slim"

    def _workdir(self, argument):
        self.workdir = pathlib.Path(argument)
        (self.root / argument.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def here(self):
        return self.root / str(self.workdir).lstrip("/")

    def _copy(self, argument):
        *sources, target = argument.split()
        if sources[0].startswith("--from="):
            # The stages share one directory here: what is copied is there already.
            assert self.root / sources[1].lstrip("/") == self.here() and target == "./"
            return
        for source in sources:
            if source.endswith("/"):
                shutil.copytree(ROOT / source, self.here() / target,
                                ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, self.here() / target)

    def _run(self, argument):
        subprocess.run(argument, shell=True, check=True, cwd=self.here(), stdout=subprocess.PIPE,
                       env={**os.environ, "PATH": f"{anyones_python()}:{os.environ['PATH']}"})

    def _env(self, argument):
        name, _, value = argument.partition("=")
        self.environment[name] = value.replace("/srv/router", str(self.here()))

    def _user(self, argument):
        self.user = argument

    def _expose(self, argument):
        self.ports = argument.split()

    def _stopsignal(self, argument):
        assert argument == "SIGTERM"

    def _cmd(self, argument):
        self.command = json.loads(argument)


@pytest.fixture
def image():
    """The image, walked; nobody may write to it any more. Not below a private directory."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="image-"))
    root.chmod(0o755)
    image = Image(root)
    image.walk(steps(ROOT / "deploy" / "docker" / "Dockerfile"))
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    yield image
    for path in [root, *root.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(root)


def test_the_image_serves_as_an_unprivileged_user_on_a_read_only_tree(image):
    """007-R8"""
    assert image.user == f"{USER}:{USER}"
    assert image.command == ["gunicorn"] and image.ports == ["8080", "8081"]
    port, health = free_port(), free_port()
    with Upstream(**FEED) as upstream:
        router = Router(upstream.url)
        router.port = port
        router.command = [str(image.here() / ".venv/bin" / image.command[0])]
        router.folder, router.user = image.here(), USER if os.geteuid() == 0 else None
        router.environment = {
            **{name: value for name, value in router.environment.items()
               if name not in ("PYTHONPATH", "PATH")},
            **image.environment, "LISTEN_ADDR": f"127.0.0.1:{port}",
            "HEALTH_LISTEN_ADDR": f"127.0.0.1:{health}", "HOME": "/nonexistent"}
        with router:
            router.wait_until_fed()
            assert router.chat("chutesai/AutoPilot").status == 200
            assert router.get("/readyz", port=health).status == 200
            assert router.chat("a", port=health).status == 404
            if os.geteuid() == 0:
                [uid] = {os.stat(f"/proc/{line['pid']}").st_uid for line in router.lines}
                assert uid == USER
            assert router.stop() == 0
    assert not [path for path in image.here().rglob("*.pyc") if ".venv" not in path.parts
                and path.parent.name != "__pycache__"]


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

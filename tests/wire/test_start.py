"""Starting and stopping, as an operator sees it."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.router import ROOT, Router, free_port, until
from tests.support.upstream import Upstream


def start(**environment):
    """Run gunicorn until it gives up and return what it left."""
    return subprocess.run(
        [sys.executable, "-m", "gunicorn"], cwd=ROOT, capture_output=True, text=True, timeout=20,
        env={"PATH": os.environ["PATH"], **environment})


def test_all_bad_variables_are_reported_together_before_a_port_is_bound():
    """001-R3, 001-R4"""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        # The port is taken: had it been bound first, that would be the complaint.
        result = start(
            LISTEN_ADDR=f"127.0.0.1:{port}", MAX_ATTEMPTS="many", STICKY_TTL_SECS="-1",
            MODELS_REFRESH_MS="", TRUST_PROXY_HEADERS="perhaps", LOG_LEVEL="loud",
            TRUSTED_PROXY_CIDRS="10.0.0.0/33", BACKEND_BASE_URL="ftp://x", MODELS_URL="http://")
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 8
    assert "MAX_ATTEMPTS: got 'many', expected a whole number of at least 1." in lines
    assert {line.partition(":")[0] for line in lines} == {
        "MAX_ATTEMPTS", "STICKY_TTL_SECS", "MODELS_REFRESH_MS", "TRUST_PROXY_HEADERS",
        "LOG_LEVEL", "TRUSTED_PROXY_CIDRS", "BACKEND_BASE_URL", "MODELS_URL"}


@pytest.mark.parametrize("url", ["https://user:hunter2@example.test", "https://hunter2@x.test/v1"])
def test_credentials_in_a_url_are_refused_and_not_shown(url):
    """001-R4, 001-R7"""
    result = start(BACKEND_BASE_URL=url)
    assert result.returncode != 0
    assert "BACKEND_BASE_URL" in result.stderr and "hunter2" not in result.stderr + result.stdout


def test_a_bad_worker_count_is_refused_with_its_value():
    """001-R4"""
    result = start(WEB_CONCURRENCY="lots")
    assert result.returncode != 0 and "lots" in result.stderr


def test_the_effective_configuration_is_logged_once_with_secrets_starred():
    """001-R5, 001-R6"""
    with Upstream() as upstream, Router(
            upstream.url, STICKY_HASH_SECRET="hunter2", WEB_CONCURRENCY="2",
            MAX_ATTEMPTS="3") as router:
        lines = router.wait_for_lines(lambda line: line["message"] == "configuration")
        assert len(lines) == 1
        shown = lines[0]["environment"]
        assert (shown["MAX_ATTEMPTS"], shown["STICKY_HASH_SECRET"]) == ("3", "****")
        assert shown["BACKEND_BASE_URL"] == upstream.url
        assert "hunter2" not in json.dumps(router.lines)


def test_every_line_is_json_with_time_and_level():
    """001-R6"""
    with Upstream() as upstream, Router(upstream.url) as router:
        router.chat("m")
        router.stop()
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in router.lines)


@pytest.mark.parametrize("how, status", [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_a_normal_stop_exits_with_0(how, status):
    """001-R1"""
    with Upstream() as upstream, Router(upstream.url, WEB_CONCURRENCY="2") as router:
        assert router.stop(how) == status


def test_a_unix_socket_serves_too(tmp_path):
    """001-R1, 005-R2"""
    path = tmp_path / "router.sock"
    with Upstream() as upstream, Router(upstream.url, LISTEN_ADDR=f"unix:{path}",
                                        TRUST_PROXY_HEADERS="yes",
                                        TRUSTED_PROXY_CIDRS="unix") as router:
        body = b'{"model":"m,n"}'
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: "
                           b"192.0.2.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                           % (len(body), body))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert router.process.poll() is None


def test_settings_of_the_environment_reach_every_worker():
    """001-R1"""
    with Upstream() as upstream, Router(upstream.url, WEB_CONCURRENCY="3") as router:
        booted = router.wait_for_lines(lambda line: line["message"] == "worker ready", 3)
        assert len({line["pid"] for line in booted}) == 3


@pytest.mark.parametrize("stdout", [
    "a full disk", "a pipe nobody reads", "a reader that has stopped"])
def test_lines_that_cannot_be_written_cost_nothing_but_themselves(stdout):
    """001-R6"""
    with Upstream() as upstream:
        router = Router(upstream.url)
        if stdout == "a full disk":
            out = os.open("/dev/full", os.O_WRONLY)
        else:
            reading, out = os.pipe()
            # Full after a few lines.
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)
            if stdout == "a pipe nobody reads":
                os.close(reading)
        process = subprocess.Popen(router.command, cwd=ROOT, env=router.environment, stdout=out,
                                   stderr=subprocess.DEVNULL)
        os.close(out)

        def serves():
            assert process.poll() is None
            with contextlib.suppress(ConnectionError):
                return router.chat("m").status == 200

        try:
            until(serves)
            # The master writes a line of this too.
            children = f"/proc/{process.pid}/task/{process.pid}/children"
            worker = open_and_read(children)
            os.kill(int(worker), signal.SIGKILL)
            until(lambda: open_and_read(children) not in ("", worker))
            for _ in range(20):
                until(serves)
        finally:
            process.terminate()
            assert process.wait(20) == 0
            if stdout == "a reader that has stopped":
                os.close(reading)


def open_and_read(path):
    with open(path) as file:
        return file.read().strip()

"""Settings that gunicorn obeys, and those that go bad while the router runs."""

import os
import shutil
import signal

import certifi
import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import ROOT, Router, free_port, until
from tests.support.upstream import Upstream
from tests.wire.test_start import start


@pytest.fixture
def backend():
    with Upstream(models_feed(["a"]), [utilization_row("a")]) as upstream:
        yield upstream


@pytest.mark.parametrize("arguments, named", [
    ("--worker-class sync", "--worker-class"), ("-k gthread --threads 4", "--threads"),
    ("--bind 127.0.0.1:1", "--bind"), ("--preload", "--preload"), ("-w 3", "--workers"),
    ("--certfile x --keyfile y", "--certfile"), ("--keep-alive 650", "--keep-alive"),
    ("--env HTTPS_PROXY=x", "--env"), ("--timeout 50 --user nobody", "--user"),
    ("--chdir /tmp", "--chdir"), ("--config gunicorn.conf.py", "--config"),
    ("other:app", "the application 'other:app'"), ("--timeout 0", "--timeout 0, expected at least"),
    ("--timeout 9", "--timeout 9, expected at least 10 seconds"),
    ("--name a\udcff", "expected text in UTF-8")])
def test_an_argument_that_the_router_sets_itself_is_refused_before_a_port_is_bound(
        arguments, named):
    """001-R14"""
    result = start(GUNICORN_CMD_ARGS=arguments, LISTEN_ADDR=f"127.0.0.1:{free_port()}",
                   MAX_ATTEMPTS="x")
    assert result.returncode != 0
    ours, another = result.stderr.strip().splitlines()
    assert ours.startswith("GUNICORN_CMD_ARGS: got ") and named in ours
    assert another.startswith("MAX_ATTEMPTS") and "Listening" not in result.stdout


def test_an_argument_that_changes_nothing_here_is_taken_and_shown(backend):
    """001-R14, 001-R5"""
    arguments = "--timeout 600 --access-logfile - --error-logfile - --max-requests 3"
    with Router(backend.url, GUNICORN_CMD_ARGS=arguments, FLASK_DEBUG="1") as router:
        [line] = [line for line in router.lines if line["message"] == "configuration"]
        assert line["environment"]["GUNICORN_CMD_ARGS"] == arguments
        for _ in range(3):
            assert router.chat("a").status == 200
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 2)


def test_a_bad_argument_of_the_command_line_is_refused_too(backend):
    """001-R14"""
    router = Router(backend.url)
    router.command += ["--workers", "3", "--timeout", "1", "app.wsgi:application"]
    router.wait_until_up = lambda: None
    with router:
        assert router.wait() != 0
    many, short = router.lines
    assert many["message"].startswith("The command line: got ")
    assert "--workers" in many["message"] and "'app.wsgi:application'" in many["message"]
    assert short["message"].startswith("The command line: got --timeout 1, ")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    """001-R23"""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "certificates").mkdir()
    os.mkfifo(tmp_path / "certificates" / "0123abcd.0")
    for bundle in (fifo, tmp_path / "certificates", "/dev/zero"):
        result = start(ALIASES_FILE=str(fifo), REQUESTS_CA_BUNDLE=str(bundle))
        assert result.returncode != 0
        aliases, certificates = result.stderr.strip().splitlines()
        assert aliases == f"ALIASES_FILE: {str(fifo)!r} cannot be read: Not a regular file."
        assert certificates.startswith("REQUESTS_CA_BUNDLE: got ")


def test_fifos_in_the_state_directory_keep_nobody_waiting(backend, tmp_path):
    """001-R23, 003-R11"""
    for name in ("models.feed", "models.0123456789abcdef"):
        os.mkfifo(tmp_path / name)
    with Router(backend.url, STATE_DIR=str(tmp_path)) as router:
        router.wait_until_fed()
        assert router.chat("a").status == 200
        [line] = [line for line in router.lines if line["message"] == "saved feed ignored"]
        assert (line["feed"], line["why"]) == ("models", "OSError")
        until((tmp_path / "models.feed").is_file)


def reload_refused(router, count=1):
    """Ask for a reload, wait until it is refused, and return why."""
    router.process.send_signal(signal.SIGHUP)
    lines = router.wait_for_lines(lambda line: line["message"] == "reload refused", count)
    assert router.chat("a").status == 200
    assert not [line for line in router.lines if line["message"].startswith("Worker exiting")]
    return lines[-1]["why"]


def reload_made(router):
    """Ask for a reload and wait until it is over."""
    router.process.send_signal(signal.SIGHUP)
    router.wait_for_lines(lambda line: line["message"].startswith("Worker exiting"))
    assert router.chat("a").status == 200
    assert router.stop() == 0


def test_a_reload_with_a_directory_or_a_ca_bundle_gone_is_refused(backend, tmp_path):
    """007-R4"""
    state, bundle = tmp_path / "state", tmp_path / "ca.pem"
    state.mkdir()
    shutil.copy(certifi.where(), bundle)
    with Router(backend.url, STATE_DIR=str(state), REQUESTS_CA_BUNDLE=str(bundle)) as router:
        shutil.rmtree(state)
        why = reload_refused(router)
        assert why.startswith("STATE_DIR: got ") and "REQUESTS_CA_BUNDLE" not in why
        bundle.rename(tmp_path / "away")
        why = reload_refused(router, 2)
        assert "STATE_DIR: got " in why and "REQUESTS_CA_BUNDLE: got " in why
        (tmp_path / "away").rename(bundle)
        state.mkdir()
        reload_made(router)


def make_fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [lambda path: path.unlink(),
                                    lambda path: path.write_text("[[alias]]\n"),
                                    make_fifo])
def test_a_reload_with_an_aliases_file_that_is_gone_or_bad_is_refused(backend, tmp_path, change):
    """007-R4"""
    path = tmp_path / "aliases.toml"
    good = '[[alias]]\nname = "gpt-4o"\nmodels = ["a"]\n'
    path.write_text(good)
    with Router(backend.url, ALIASES_FILE=str(path)) as router:
        router.wait_until_fed()
        change(path)
        assert reload_refused(router).startswith("ALIASES_FILE: ")
        assert router.chat("gpt-4o").status == 200
        path.unlink(missing_ok=True)
        path.write_text(good)
        reload_made(router)


@pytest.mark.parametrize("file, broken", [
    ("app/factory.py", "import nothing_of_this_name"), ("app/routing/view.py", "def ("),
    ("app/config.py", "1 / 0"), ("gunicorn.conf.py", "raise RuntimeError('no')"),
    ("app/worker.py", "from app.errors import NothingOfThisName")])
def test_a_reload_with_code_that_does_not_load_is_refused(backend, tmp_path, file, broken):
    """007-R4"""
    shutil.copytree(ROOT / "app", tmp_path / "app")
    shutil.copy(ROOT / "gunicorn.conf.py", tmp_path)
    router = Router(backend.url)
    router.folder = tmp_path
    with router:
        good = (tmp_path / file).read_text()
        (tmp_path / file).write_text(f"{good}\n{broken}\n")
        assert reload_refused(router)
        (tmp_path / file).write_text(good)
        reload_made(router)


def test_a_reload_takes_new_names_of_new_code(backend, tmp_path):
    """007-R4: the master forgets the modules that it has."""
    shutil.copytree(ROOT / "app", tmp_path / "app")
    shutil.copy(ROOT / "gunicorn.conf.py", tmp_path)
    router = Router(backend.url)
    router.folder = tmp_path
    with router:
        with open(tmp_path / "app/config.py", "a") as file:
            file.write("\nNEW_NAME = 1\n")
        conf = (tmp_path / "gunicorn.conf.py").read_text()
        (tmp_path / "gunicorn.conf.py").write_text(
            conf + "\nfrom app.config import NEW_NAME\nassert NEW_NAME\n")
        reload_made(router)


def test_a_killed_worker_whose_directory_is_gone_does_not_end_the_others(backend, tmp_path):
    """007-R5"""
    state = tmp_path / "state"
    state.mkdir()
    with Router(backend.url, STATE_DIR=str(state), WEB_CONCURRENCY="2") as router:
        first, _ = [line["pid"] for line in router.lines if line["message"] == "worker ready"]
        shutil.rmtree(state)
        os.kill(first, signal.SIGKILL)
        lines = router.wait_for_lines(lambda line: line["message"] == "worker cannot start", 2)
        assert lines[0]["why"].startswith("STATE_DIR: got ")
        assert router.chat("a").status == 200
        state.mkdir()
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 3)
        until(lambda: router.get("/readyz").status == 200)
        assert router.stop() == 0

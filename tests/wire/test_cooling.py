"""A model that hangs, and what it costs a host of three workers."""

import contextlib
import os
import pathlib
import signal
import sqlite3
import threading

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import Router, until
from tests.support.upstream import Upstream, complete, stall, unavailable

ALIAS = "chutesai/AutoPilot"
NAMES = ["best", "next", "third", "fourth"]
# No client is led by what answered it before.
SHORT = {"WEB_CONCURRENCY": "3", "STICKY_TTL_SECS": "0",
         "UPSTREAM_HEADER_TIMEOUT_MS": "400", "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS": "400"}


@pytest.fixture
def upstream():
    rows = [utilization_row(name, active=40 - 10 * place) for place, name in enumerate(NAMES)]
    with Upstream(models_feed(NAMES), rows) as server:
        server.otherwise(complete(b'{"object":"chat.completion"}'))
        server.on("best", stall)
        yield server


@contextlib.contextmanager
def running(upstream, **environment):
    with Router(upstream.url, **{**SHORT, **environment}) as router:
        router.wait_until_fed()
        yield router
        assert not [line for line in router.lines if line.get("ended") == "internal_error"]


def ask(router):
    """Ask the alias something and return which model answered."""
    answer = router.chat(ALIAS)
    assert answer.status == 200
    return answer.value("x-chutes-autopilot-selected")


def cool(router, upstream):
    """Lose three deadlines to the best model."""
    seen, before = len(upstream.seen("best")), len(coolings(router))
    assert [ask(router) for _ in range(4)] == ["next"] * 4
    # On a slow machine the cooling may be over by now, and the last one have been its probe.
    until(lambda: len(upstream.seen("best")) == seen + 2 + len(coolings(router)) - before)


def coolings(router):
    return [line for line in router.lines if line["message"] == "model cooling"]


def send_on(client, stream="true"):
    client.request("POST", "/v1/chat/completions",
                   f'{{"stream": {stream}, "model": "{ALIAS}"}}'.encode())


def ask_on(client):
    send_on(client)
    response = client.getresponse()
    response.read()
    return response


def test_a_hanging_model_costs_a_host_three_deadlines_and_not_one_for_each_client(upstream):
    """003-R36, 003-R40, 003-R42, 003-R43"""
    with running(upstream, COOLDOWN_SECS="60") as router:
        with router.one_client_of_each_worker() as clients:
            for _ in range(5):
                for client in clients.values():
                    assert ask_on(client).getheader("x-chutes-autopilot-selected") == "next"
                assert len(upstream.seen("best")) == 3
        [line] = router.wait_for_lines(lambda line: line["message"] == "model cooling")
        assert (line["model"], line["failures"]) == ("best", 3) and 48 <= line["seconds"] <= 60
        for _ in range(4):
            shown = router.metrics()
            assert [shown.get(("model_cooling", name)) for name in NAMES] == [1, None, None, None]
            assert shown["cooldowns_total", "best"] == 1
        # It is never removed: when all others fail it is tried.
        for name in NAMES[1:]:
            upstream.on(name, unavailable)
        upstream.on("best", complete(b"{}"))
        assert ask(router) == "best"
        router.wait_for_lines(lambda line: line["message"] == "model cooling no more")
        assert router.metrics()["model_cooling", "best"] == 0


def test_a_cooling_costs_one_probe_and_the_first_good_one_ends_it(upstream):
    """003-R38, 003-R43: while clients ask all workers without a break"""
    with running(upstream, COOLDOWN_SECS="1", COOLDOWN_MAX_SECS="1") as router:
        cool(router, upstream)
        enough = threading.Event()

        def client():
            while not enough.is_set():
                assert ask(router) == "next"

        clients = [threading.Thread(target=client) for _ in range(6)]
        for each in clients:
            each.start()
        router.wait_for_lines(lambda line: line["message"] == "model cooling", 4)
        enough.set()
        for each in clients:
            each.join()
        # Each cooling but the first was begun by the failure of one probe.
        until(lambda: len(upstream.seen("best")) == 3 + len(coolings(router)) - 1)
        count = len(coolings(router))
        upstream.on("best", complete(b"{}"))
        until(lambda: ask(router) == "best")
        [line] = router.wait_for_lines(lambda line: line["message"] == "model cooling no more")
        assert line["model"] == "best" and len(coolings(router)) == count
        assert len(upstream.seen("best")) == 3 + count
        assert [ask(router) for _ in range(9)] == ["best"] * 9
        assert router.metrics_at_rest()["cooldowns_total", "best"] == count


def test_a_clients_choice_is_passed_over_while_it_cools_and_kept(upstream):
    """005-R15, 003-R60, 002-R67"""
    upstream.on("best", complete(b"{}"))
    with running(upstream, STICKY_TTL_SECS="1800", COOLDOWN_SECS="3") as router:
        told = [f"x-chutes-autopilot-{each}" for each in ("selected", "sticky", "skipped")]

        def asked():
            answer = router.chat(ALIAS, headers={"Authorization": "Bearer mine"})
            return tuple(answer.value(name) for name in told)

        assert asked() == ("best", "miss", None)
        upstream.on("best", unavailable)
        # It is others whom the model fails.
        for _ in range(3):
            router.chat("best")
        router.wait_for_lines(lambda line: line["message"] == "model cooling")
        assert asked() == ("next", "ignored", "best;cooling")
        upstream.on("best", complete(b"{}"))
        # What answered meanwhile has not become the choice: it would be tried first.
        until(lambda: asked()[0] == "best")
        assert asked() == ("best", "hit", None)


def probing(router, upstream, stream="true"):
    """Send requests until one is the probe; return its connection, while it waits."""
    seen, clients = len(upstream.seen("best")), []

    def one_more_is_the_probe():
        count = len(upstream.exchanges)
        clients.append(router.connect())
        send_on(clients[-1], stream)
        until(lambda: len(upstream.exchanges) > count)
        return len(upstream.seen("best")) > seen

    until(one_more_is_the_probe)
    for client in clients[:-1]:
        client.close()
    return clients[-1]


def test_a_model_that_is_due_has_one_probe_also_where_a_request_has_one_attempt(upstream):
    """003-R38, 002-R11"""
    with running(upstream, COOLDOWN_SECS="1", MAX_ATTEMPTS="1",
                 UPSTREAM_HEADER_TIMEOUT_MS="5000") as router:
        upstream.on("best", unavailable)
        assert [router.chat(ALIAS).status for _ in range(3)] == [503] * 3
        upstream.on("best", stall)
        client = probing(router, upstream)
        assert [ask(router) for _ in range(6)] == ["next"] * 6
        assert len(upstream.seen("best")) == 4
        client.close()


def test_a_probes_client_that_leaves_gives_the_probe_back(upstream):
    """003-R38"""
    with running(upstream, COOLDOWN_SECS="1", UPSTREAM_HEADER_TIMEOUT_MS="60000") as router:
        upstream.on("best", unavailable)
        cool(router, upstream)
        upstream.on("best", stall)
        client = probing(router, upstream)
        answer = router.chat(ALIAS)
        assert answer.value("x-chutes-autopilot-selected") == "next"
        assert answer.value("x-chutes-autopilot-skipped") == "best;cooling"
        upstream.on("best", complete(b"{}"))
        client.close()
        assert upstream.seen("best")[-1].closed.wait(10)
        # Another request is the probe long before the deadlines of this one are over.
        until(lambda: ask(router) == "best")
        [line] = router.wait_for_lines(lambda line: line["message"] == "model cooling no more")
        assert len(upstream.seen("best")) == 5 and len(coolings(router)) == 1


def test_a_probe_that_is_not_streamed_keeps_no_model_aside_for_its_ten_minutes(upstream):
    """003-R38"""
    with running(upstream, COOLDOWN_SECS="1", COOLDOWN_MAX_SECS="2") as router:
        upstream.on("best", unavailable)
        cool(router, upstream)
        upstream.on("best", stall)
        client = probing(router, upstream, stream="false")
        upstream.on("best", complete(b"{}"))
        assert ask(router) == "next"
        until(lambda: ask(router) == "best")
        router.wait_for_lines(lambda line: line["message"] == "model cooling no more")
        assert len(coolings(router)) == 1 and not upstream.seen("best")[-2].closed.is_set()
        client.close()


def test_a_worker_killed_in_the_middle_of_a_probe_leaves_the_state_right(upstream):
    """007-R39, 003-R38"""
    with running(upstream, COOLDOWN_SECS="1", UPSTREAM_HEADER_TIMEOUT_MS="1500") as router:
        upstream.on("best", unavailable)
        cool(router, upstream)
        upstream.on("best", stall)
        client = probing(router, upstream)
        os.kill(router.worker_of(client.sock), signal.SIGKILL)
        upstream.on("best", complete(b"{}"))
        # Nobody knows that the probe is over, so it has its time.
        assert ask(router) == "next"
        until(lambda: ask(router) == "best")
        assert [ask(router) for _ in range(9)] == ["best"] * 9
        router.wait_for_lines(lambda line: line["message"] == "model cooling no more")
        assert len(coolings(router)) == 1
        client.close()


def test_a_direct_request_is_never_led_elsewhere_and_counts(upstream):
    """003-R36, 003-R42"""
    with running(upstream, COOLDOWN_SECS="60") as router:
        for _ in range(3):
            assert router.chat("best").error["code"] == "upstream_header_timeout"
        assert ask(router) == "next" and len(upstream.seen("best")) == 3
        assert router.chat("best,third").value("x-chutes-autopilot-selected") == "third"
        assert router.chat("best").error["code"] == "upstream_header_timeout"
        upstream.on("best", complete(b"{}"))
        assert router.chat("best").status == 200
        assert ask(router) == "best"


def test_names_that_clients_make_up_neither_cool_nor_leave_a_trace(upstream):
    """003-R44"""
    made_up = ["best:THINKING", "best:bogus", "said-in-confidence"]
    for name in made_up:
        upstream.on(name, unavailable)
    with running(upstream, COOLDOWN_SECS="60", UNKNOWN_MODELS="pass") as router:
        for name in made_up * 4:
            assert router.chat(name).status == 503
        assert router.chat(",".join([*made_up, "third"])).value(
            "x-chutes-autopilot-skipped") == ", ".join(f"{name};upstream_503" for name in made_up)
        cool(router, upstream)
        [line] = router.wait_for_lines(lambda line: line["message"] == "model cooling")
        assert line["model"] == "best"
        written = b"".join(path.read_bytes() for path in pathlib.Path(
            router.runtime_directory()).glob("cooling*"))
        assert b"best" in written
        assert not any(name.encode() in written for name in made_up)


def test_a_model_that_is_switched_to_never_cool_is_tried_each_time(upstream):
    """003-R37"""
    upstream.on("best", unavailable)
    with running(upstream, COOLDOWN_SECS="0") as router:
        for count in range(1, 9):
            assert ask(router) == "next" and len(upstream.seen("best")) == count
        assert not coolings(router)


def removed(folder):
    for path in folder.glob("cooling*"):
        path.unlink()
    return contextlib.nullcontext()


@contextlib.contextmanager
def locked(folder):
    holder = sqlite3.connect(folder / "cooling.sqlite", isolation_level=None)
    until(lambda: begun(holder))
    yield
    holder.close()


def begun(holder):
    try:
        holder.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


@contextlib.contextmanager
def full(folder):
    filler = folder.parent / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    yield
    filler.unlink()


@contextlib.contextmanager
def damaged(folder):
    # The log too: it is newer than the file.
    for path in folder.glob("cooling.sqlite*"):
        if not path.name.endswith("-shm"):
            with open(path, "r+b") as file:
                file.write(b"x" * path.stat().st_size)
    yield


def tried_by(clients, upstream):
    """Have each client ask, and return how often the best model was tried for that."""
    seen = len(upstream.seen("best"))
    for client in clients:
        ask_on(client)
    return len(upstream.seen("best")) - seen


@pytest.mark.parametrize("trouble", [removed, locked, full, damaged])
def test_a_store_in_trouble_costs_cooling_and_no_request(upstream, trouble):
    """003-R41, 007-R14, 007-R40"""
    upstream.on("best", unavailable)
    router = Router(upstream.url, **{**SHORT, "COOLDOWN_SECS": "60"})
    root = ""
    if trouble is full:
        router.command = ["unshare", "--mount", "sh", "-c",
                          'mount -t tmpfs -o size=48m tmpfs /dev/shm && exec "$@"', "sh",
                          *router.command]
    with router:
        router.wait_until_fed()
        if trouble is full:
            root = f"/proc/{router.process.pid}/root"
        with trouble(pathlib.Path(f"{root}{router.runtime_directory()}")):
            assert [ask(router) for _ in range(12)] == ["next"] * 12
            assert router.get("/metrics").status == 200
        # What was written meanwhile is nowhere, or it has begun a cooling.
        until(lambda: ask(router) and router.metrics().get(("model_cooling", "best")))
        with router.one_client_of_each_worker() as clients:
            until(lambda: not tried_by(clients.values(), upstream))
        assert (router.metrics()["cooling_errors_total",] > 0) is (trouble is not removed)
        assert router.stop() == 0
        assert not [line for line in router.lines if line.get("ended") == "internal_error"]

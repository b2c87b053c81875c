"""Overload, drain and restarts, as those see it who run the service."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import ROOT, Answer, Router, free_port, read_to_end, read_until, until
from tests.support.upstream import DEADLINE_S, Upstream

FEED = {"models": models_feed(["a", "b"]), "rows": [utilization_row("a"), utilization_row("b")]}
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def ended_well(router, killed=()):
    """Say whether every worker came to its own end, without an error.

    A worker that the master kills leaves no word of it anywhere: what is missing is its last line.
    """
    begun = {line["pid"] for line in router.lines
             if line["message"].startswith("Booting worker")} - set(killed)
    ended = {line["pid"] for line in router.lines
             if line["message"].startswith("Worker exiting")}
    errors = [line for line in router.lines
              if line.get("level") in (None, "ERROR") or "exc_info" in line]
    assert begun == ended and not errors, (begun, ended, errors)
    return True


class Held:
    """A script that sends a first event and then waits for the test."""

    def __init__(self):
        self.go_on = threading.Event()

    def __call__(self, exchange):
        exchange.head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
        exchange.chunk(b"data: first\n\n")
        assert self.go_on.wait(DEADLINE_S)
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.chunk(b"")


def silent(exchange):
    """Send nothing until the router closes."""
    exchange.until_closed()


def first_then_silence(exchange):
    exchange.head(200, ("Transfer-Encoding", "chunked"))
    exchange.chunk(b"first")
    exchange.until_closed()


@pytest.fixture
def backend():
    with Upstream(**FEED) as upstream:
        yield upstream


def opened(router, model="a", port=None, version="1.1"):
    """Send a request and return its socket."""
    client = socket.create_connection(("127.0.0.1", port or router.port), DEADLINE_S)
    body = json.dumps({"model": model, "stream": True}).encode()
    client.sendall(b"POST /v1/chat/completions HTTP/%s\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                   % (version.encode(), len(body), body))
    return client


def idle_client(router):
    """Return a connection that has been answered and asks nothing more."""
    client = socket.create_connection(("127.0.0.1", router.port), DEADLINE_S)
    client.sendall(PROBE)
    read_until(client, b"ok")
    return client


def test_beyond_the_limit_a_request_is_refused_at_once_and_probes_go_on(backend):
    """007-R1, 002-R21"""
    backend.on("a", held := Held())
    with Router(backend.url, MAX_INFLIGHT_REQUESTS="2") as router:
        router.wait_until_fed()
        before = router.metrics()
        streams = [opened(router), opened(router)]
        for stream in streams:
            read_until(stream, b"first")
        seen = len(backend.exchanges)
        refused = router.chat("b", headers={"X-Request-Id": "one-too-many"})
        assert (refused.status, refused.error["type"]) == (503, "server_error")
        assert (refused.error["code"], refused.error["param"]) == ("overloaded", None)
        assert int(refused.value("Retry-After")) >= 1
        # What was sent has been read: nginx need not connect anew for each refusal.
        assert refused.value("Connection") == "keep-alive"
        assert refused.value("X-Request-Id") == "one-too-many"
        assert router.get("/healthz").status == router.get("/readyz").status == 200
        assert len(backend.exchanges) == seen
        held.go_on.set()
        for stream in streams:
            assert read_until(stream, b"\r\n0\r\n\r\n")
            stream.close()
        record = router.record("one-too-many")
        assert (record["ended"], record["code"]) == ("refused", "overloaded")
        assert router.chat("b").status == 200
        risen = router.counted_since(before)
        assert risen["requests_total", "503"] == risen["overloaded_total",] == 1


def test_a_refused_client_need_not_have_sent_its_body(backend):
    """007-R1"""
    backend.on("a", held := Held())
    with Router(backend.url, MAX_INFLIGHT_REQUESTS="1") as router:
        stream = opened(router)
        read_until(stream, b"first")
        with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                           b"Content-Length: 100000\r\n\r\n{")
            assert b'"overloaded"' in read_to_end(client)
        held.go_on.set()
        read_until(stream, b"\r\n0\r\n\r\n")
        stream.close()


def test_refused_and_idle_clients_leave_room_for_probes_and_for_more_refusals(backend):
    """007-R1: with as many requests as it takes a worker has one connection to spare here."""
    backend.on("a", held := Held())
    with Router(backend.url, WORKER_CONNECTIONS="4") as router, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(opened(router)) for _ in range(3)]
        for stream in streams:
            read_until(stream, b"first")
        for _ in range(3):
            refused = stack.enter_context(opened(router, "b"))
            assert b"Connection: close" in read_until(refused, b"overloaded")
            # Said before anything is asked: an idle connection on the last place is given up.
            idle = stack.enter_context(
                socket.create_connection(("127.0.0.1", router.port), DEADLINE_S))
            assert idle.recv(1) == b""
            assert router.get("/healthz").status == router.get("/readyz").status == 200
        held.go_on.set()
        for stream in streams:
            assert read_until(stream, b"\r\n0\r\n\r\n")


def test_the_connection_that_waits_longest_makes_room_for_a_new_one(backend):
    """007-R1: not one that has just been used; one whose head is not whole like an idle one."""
    with Router(backend.url, WORKER_CONNECTIONS="4") as router, contextlib.ExitStack() as stack:
        first, second, half = (stack.enter_context(idle_client(router)) for _ in range(3))
        half.sendall(PROBE + PROBE[:20])
        read_until(half, b"ok")
        # The first is idle for longer than a connection is kept for its next request.
        threading.Event().wait(1.1)
        second.sendall(PROBE)
        read_until(second, b"ok")
        for _ in range(2):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", router.port), DEADLINE_S))
        assert half.recv(1) == b"" and first.recv(1) == b""
        second.sendall(PROBE)
        assert read_until(second, b"ok")


def test_clients_up_to_the_limit_lose_no_request(backend):
    """007-R1"""
    statuses, over = [], threading.Event()

    def ask(router):
        # A model of its own: no more than half of the requests may wait for one.
        connection, body = router.connect(), b'{"model": "b:%d"}' % threading.get_ident()
        while not over.is_set():
            connection.request("POST", "/v1/chat/completions", body)
            statuses.append(Answer(connection.getresponse()).status)
        connection.close()

    def come_and_go(router):
        while not over.is_set():
            statuses.append(router.get("/healthz").status)

    with Router(backend.url, WORKER_CONNECTIONS="6") as router:
        askers = [threading.Thread(target=what, args=(router,))
                  for what in [ask] * 5 + [come_and_go]]
        for asker in askers:
            asker.start()
        until(lambda: len(statuses) >= 2000)
        over.set()
        for asker in askers:
            asker.join(DEADLINE_S)
        # One of six may find the limit of requests, which is five.
        assert set(statuses) <= {200, 503} and statuses.count(200) > 1900


@pytest.fixture
def crowded(backend):
    """A router at which far more clients wait than it has connections."""
    port = free_port()
    with Router(backend.url, WORKER_CONNECTIONS="2",
                HEALTH_LISTEN_ADDR=f"127.0.0.1:{port}") as router, contextlib.ExitStack() as slow:
        router.wait_until_fed()
        for _ in range(200):
            client = slow.enter_context(
                socket.create_connection(("127.0.0.1", router.port), DEADLINE_S))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        yield router, port


def test_the_health_address_answers_while_all_connections_are_taken(crowded):
    """007-R2"""
    router, port = crowded
    for path in ("/healthz", "/readyz", "/metrics"):
        assert router.get(path, port=port).status == 200


def test_the_health_address_takes_no_chat_completions(crowded):
    """007-R2"""
    router, port = crowded
    refused = router.chat("a", port=port)
    assert (refused.status, refused.error["code"]) == (404, "not_found")
    for method in ("GET", "POST", "OPTIONS"):
        assert router.get("/v1/chat/completions", port=port, method=method).status == 404


def test_at_sigterm_readyz_says_draining_and_streams_finish(backend):
    """007-R3, 001-R10"""
    backend.on("a", held := Held())
    port = free_port()
    with Router(backend.url, HEALTH_LISTEN_ADDR=f"127.0.0.1:{port}",
                GRACEFUL_TIMEOUT_SECS="60") as router:
        router.wait_until_fed()
        stream = opened(router)
        read_until(stream, b"first")
        router.process.send_signal(signal.SIGTERM)
        router.wait_for_lines(lambda line: line["message"] == "draining")
        for address in (router.port, port):
            answer = router.get("/readyz", port=address)
            assert (answer.status, answer.error["code"]) == (503, "draining")
        router.wait_until_refusing()
        assert router.get("/healthz", port=port).status == 200
        assert router.get("/readyz", port=port).error["code"] == "draining"
        held.go_on.set()
        assert read_until(stream, b"\r\n0\r\n\r\n")
        assert stream.recv(1) == b""
        stream.close()
        assert router.wait() == 0 and ended_well(router)
        assert [line["ended"] for line in router.lines if line["message"] == "request"] == [
            "complete"]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_that_would_outlive_the_grace_is_cut_in_time_and_logged(backend, version):
    """007-R3, 006-W4"""
    backend.on("a", first_then_silence)
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS="4") as router:
        with opened(router, version=version) as stream:
            read_until(stream, b"first")
            exchange = backend.exchanges[-1]
            router.process.send_signal(signal.SIGTERM)
            if version == "1.0":
                with pytest.raises(ConnectionResetError):
                    stream.recv(1)
            else:
                assert b"0\r\n\r\n" not in read_to_end(stream)
        assert exchange.closed.wait(DEADLINE_S)
        assert router.wait() == 0 and ended_well(router)
        [line] = [line for line in router.lines if line["message"] == "request"]
        assert (line["ended"], line["cut_cause"]) == ("cut_at_shutdown", "shutdown")


def test_a_client_that_does_not_read_is_cut_at_shutdown_too(backend):
    """007-R3"""
    def flood(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"))
        while True:
            exchange.chunk(b"x" * 65536)

    backend.on("a", flood)
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS="4") as router:
        with opened(router) as stream:
            read_until(stream, b"xxx")
            router.process.send_signal(signal.SIGTERM)
            assert router.wait() == 0 and ended_well(router)
        [line] = [line for line in router.lines if line["message"] == "request"]
        assert (line["ended"], line["cut_cause"]) == ("cut_at_shutdown", "shutdown")


def test_a_request_without_an_answer_yet_is_refused_in_time(backend):
    """007-R3"""
    backend.on("a", silent)
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS="4") as router:
        with opened(router) as waiting:
            exchange = backend.wait_for("a")
            router.process.send_signal(signal.SIGTERM)
            received = read_to_end(waiting)
        assert received.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in received
        assert b"Retry-After: " in received and b"Connection: close" in received
        assert exchange.closed.wait(DEADLINE_S)
        assert router.wait() == 0 and ended_well(router)
        [line] = [line for line in router.lines if line["message"] == "request"]
        assert (line["ended"], line["status"], line["cut_cause"]) == ("refused", 503, "")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHo",
                                  b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                                  b"Content-Length: 50\r\n\r\n{"])
@pytest.mark.parametrize("grace_s", ["1", "4"])
def test_a_client_that_sends_nothing_whole_does_not_hold_the_exit(backend, sent, grace_s):
    """007-R3"""
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS=grace_s,
                CLIENT_BODY_TIMEOUT_MS="60000") as router:
        with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as client:
            client.sendall(sent)
            router.wait_for_connections(1)
            router.process.send_signal(signal.SIGTERM)
            received = read_to_end(client)
            assert router.wait() == 0 and ended_well(router)
        assert (b"503" in received) == sent.startswith(b"POST")


def test_an_idle_keep_alive_connection_does_not_hold_the_exit(backend):
    """007-R3"""
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS="60") as router:
        with idle_client(router) as idle:
            router.process.send_signal(signal.SIGTERM)
            assert idle.recv(1) == b""
        assert router.wait() == 0 and ended_well(router)


def test_a_reload_under_load_loses_no_request(backend):
    """007-R4"""
    backend.on("a", held := Held())
    with Router(backend.url, WEB_CONCURRENCY="2", GRACEFUL_TIMEOUT_SECS="60") as router:
        router.wait_until_fed()
        stream = opened(router)
        read_until(stream, b"first")
        stop, statuses = threading.Event(), []

        def ask():
            connection = router.connect()
            while not stop.is_set():
                connection.request("POST", "/v1/chat/completions", b'{"model": "b"}')
                answer = Answer(connection.getresponse())
                statuses.append((answer.status, answer.ended))
            connection.close()

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        router.process.send_signal(signal.SIGHUP)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 4)
        router.wait_for_lines(lambda line: line["message"] == "draining", 2)
        seen = len(statuses)
        held.go_on.set()
        assert read_until(stream, b"\r\n0\r\n\r\n")
        stream.close()
        router.wait_for_lines(lambda line: line["message"].startswith("Worker exiting"), 2)
        until(lambda: len(statuses) >= seen + 50)
        stop.set()
        for asker in askers:
            asker.join(DEADLINE_S)
        assert set(statuses) == {(200, "complete")}
        assert router.stop() == 0 and ended_well(router)


def test_a_killed_worker_costs_its_own_streams_only(backend):
    """007-R5"""
    backend.on("a", held := Held())
    with Router(backend.url, WEB_CONCURRENCY="2") as router:
        pids = [line["pid"] for line in router.lines if line["message"] == "worker ready"]
        streams = []
        while {pid for pid, _ in streams} != set(pids):
            stream = opened(router)
            read_until(stream, b"first")
            streams.append((router.worker_of(stream), stream))
        os.kill(pids[0], signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 3)
        held.go_on.set()
        for pid, stream in streams:
            if pid == pids[0]:
                assert b"[DONE]" not in read_to_end(stream)
            else:
                read_until(stream, b"[DONE]\n\n\r\n0\r\n\r\n")
            stream.close()
        assert router.chat("b").status == 200


def test_a_client_that_asks_and_does_not_read_does_not_hold_the_exit(backend):
    """007-R3"""
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS="4") as router:
        with socket.create_connection(("127.0.0.1", router.port), DEADLINE_S) as deaf:
            deaf.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    deaf.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            assert router.stop() == 0 and ended_well(router)


@pytest.mark.parametrize("later_s", [0.0, 0.01, 0.03, 0.06, 0.12])
def test_a_signal_while_the_workers_boot_is_heeded(backend, later_s):
    """007-R3"""
    router = Router(backend.url, WEB_CONCURRENCY="2", GRACEFUL_TIMEOUT_SECS="19")
    router.wait_until_up = lambda: router.wait_for_lines(
        lambda line: line["message"].startswith("Booting worker"))
    with router:
        threading.Event().wait(later_s)
        assert router.stop() == 0 and ended_well(router)


def test_signals_without_number_while_a_worker_boots_are_one(backend):
    """007-R3: none of them breaks into what is done at exit."""
    router = Router(backend.url)
    router.wait_until_up = lambda: router.wait_for_lines(
        lambda line: line["message"].startswith("Booting worker"))
    with router:
        [pid] = [line["pid"] for line in router.lines if line["message"].startswith("Booting")]
        with contextlib.suppress(ProcessLookupError):
            until(lambda: os.kill(pid, signal.SIGTERM))
        assert router.stop() == 0 and ended_well(router)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGQUIT", "SIGINT"])
def test_a_signal_while_a_worker_sets_its_handlers_is_heeded(number):
    """007-R3: it comes when gunicorn has just made it a signal that kills."""
    script = f"""if True:
        import os, signal
        from app.worker import RouterWorker
        set_handler = signal.signal
        def set_and_send(number, handler):
            set_handler(number, handler)
            if (number, handler) == (signal.{number}, signal.SIG_DFL):
                os.kill(os.getpid(), number)
        signal.signal = set_and_send
        worker = object.__new__(RouterWorker)
        worker.PIPE = os.pipe()
        os.set_blocking(worker.PIPE[1], False)
        worker.handle_exit = worker.handle_quit = lambda number, _: print(number)
        worker.init_signals()
    """
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True,
                            capture_output=True, timeout=DEADLINE_S)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{signal.Signals[number]}\n"


def test_a_worker_without_a_master_drains_too(backend):
    """007-R3"""
    backend.on("a", held := Held())
    with Router(backend.url) as router:
        stream = opened(router)
        read_until(stream, b"first")
        os.kill(router.process.pid, signal.SIGKILL)
        until(lambda: any(line["message"] == "draining" for line in router.lines))
        held.go_on.set()
        read_until(stream, b"\r\n0\r\n\r\n")
        stream.close()
        router.wait()
        [line] = [line for line in router.lines if line["message"] == "request"]
        assert line["ended"] == "complete" and ended_well(router)


def test_few_allowed_files_are_raised_to_the_hard_limit_or_complained_about(backend):
    """007-R12"""
    for soft, hard, warned in ((64, 4096, False), (64, 256, True)):
        router = Router(backend.url, WORKER_CONNECTIONS="1000")
        router.command = ["prlimit", f"--nofile={soft}:{hard}", *router.command]
        with router:
            [pid] = [line["pid"] for line in router.lines if line["message"] == "worker ready"]
            with open(f"/proc/{pid}/limits") as limits:
                [line] = [line for line in limits if line.startswith("Max open files")]
            assert int(line.split()[3]) == hard
            said = [line for line in router.lines if line["message"].startswith("too few open")]
            assert bool(said) is warned


def test_idle_connections_are_not_the_first_to_go_at_a_reload(backend):
    """007-R4: whoever gives them up within some seconds never meets a closed one."""
    with Router(backend.url, GRACEFUL_TIMEOUT_SECS="60") as router:
        with idle_client(router) as idle:
            router.process.send_signal(signal.SIGHUP)
            router.wait_for_lines(lambda line: line["message"] == "draining")
            idle.settimeout(2.0)
            with pytest.raises(TimeoutError):
                idle.recv(1)
            idle.sendall(PROBE)
            idle.settimeout(DEADLINE_S)
            assert b"Connection: close" in read_until(idle, b"ok")
        assert router.stop() == 0 and ended_well(router)


def test_a_limit_that_the_connections_do_not_allow_is_said_at_the_start(backend):
    """007-R1"""
    with Router(backend.url, WORKER_CONNECTIONS="4", MAX_INFLIGHT_REQUESTS="5000") as router:
        [line] = [line for line in router.lines if line["message"].startswith("MAX_INFLIGHT")]
        assert (line["asked"], line["taken"]) == (5000, 3)

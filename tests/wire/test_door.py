"""The door leaned on: clients that send slowly, much, or what they should not."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import (DEADLINE_S, ROOT, Answer, Router, free_port, read_to_end,
                                  read_until, until)
from tests.support.upstream import Upstream

FEED = {"models": models_feed(["a", "b"]), "rows": [utilization_row("a"), utilization_row("b")]}
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
# No deadline of the router's helps within a test.
NEVER = {"CLIENT_HEADER_TIMEOUT_MS": "600000", "CLIENT_BODY_TIMEOUT_MS": "600000",
         "CLIENT_KEEPALIVE_SECS": "600"}


class Held:
    """A streamed answer that goes on when it is told to."""

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


@pytest.fixture
def backend():
    with Upstream(**FEED) as upstream:
        yield upstream


@contextlib.contextmanager
def sending(router, data, count=1):
    """Give sockets that have sent `data` and then wait."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(
                socket.create_connection(("127.0.0.1", router.port), DEADLINE_S)))
            clients[-1].sendall(data)
        yield clients


def request(model, *fields, size=0):
    """Return the bytes of a request, its body padded to a size."""
    body = json.dumps({"model": model, "stream": True}).encode().ljust(size)
    return POST + b"".join(field + b"\r\n" for field in fields) + (
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body))


@contextlib.contextmanager
def with_health_address(backend, **settings):
    port = free_port()
    with Router(backend.url, HEALTH_LISTEN_ADDR=f"127.0.0.1:{port}", **settings) as router:
        router.wait_until_fed()
        yield router, port


@pytest.mark.parametrize("sent", [b"P", b"", POST, b"\r\n"])
def test_more_silent_clients_than_connections_keep_nobody_out(backend, sent):
    """007-R1, 007-R20"""
    with with_health_address(backend, WORKER_CONNECTIONS="60", **NEVER) as (router, port):
        with sending(router, sent, 75):
            for _ in range(3):
                assert router.get("/healthz", port=port).status == 200
                assert router.chat("a").status == router.get("/healthz").status == 200


def test_dripped_bodies_keep_nobody_out(backend):
    """007-R20: more than there are places in flight, and more than there are connections."""
    half = POST + b"Content-Length: 1000\r\n\r\n{"
    with with_health_address(backend, WORKER_CONNECTIONS="60", MAX_INFLIGHT_REQUESTS="5",
                             **NEVER) as (router, port):
        for count in (20, 80):
            with sending(router, half, count) as clients:
                assert router.get("/healthz", port=port).status == 200
                assert router.chat("a").status == 200
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.sendall(b" ")
                assert router.chat("a").status == 200
        assert router.get("/readyz", port=port).status == 200


def test_a_slow_body_that_gives_way_is_refused_so_that_it_comes_again(backend):
    """007-R20"""
    with Router(backend.url, WORKER_CONNECTIONS="2", **NEVER) as router:
        with sending(router, POST + b"Content-Length: 1000\r\n\r\n{", 2) as clients:
            assert router.chat("a").status == 200
            answer = b"".join(map(read_to_end, clients))
        assert answer.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in answer
        assert b"Retry-After: " in answer
        router.wait_for_lines(lambda line: line.get("code") == "overloaded")


def test_a_head_must_be_complete_in_time_however_it_comes(backend):
    """002-R40, 006-W2"""
    with Router(backend.url, CLIENT_HEADER_TIMEOUT_MS="500") as router:
        # The second request of a connection, and the first.
        for before in (PROBE, b""):
            with sending(router, before) as [client]:
                if before:
                    read_until(client, b"ok")
                client.settimeout(0.05)
                for byte in PROBE[:-2] * 40:
                    try:
                        client.sendall(bytes([byte]))
                        answer = client.recv(4096)
                        break
                    except TimeoutError:
                        continue
            assert answer.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in answer
            assert b"Connection: close" in answer


def test_a_head_has_its_own_time_whenever_it_begins(backend):
    """002-R40: the idle time does not end it."""
    with Router(backend.url, CLIENT_KEEPALIVE_SECS="1") as router:
        with sending(router, PROBE[:10]) as [client]:
            with sending(router, b"") as [idle]:
                assert idle.recv(1) == b""
            client.sendall(PROBE[10:])
            read_until(client, b"ok")
            assert client.recv(1) == b""


def test_what_cannot_be_http_is_refused_at_once(backend):
    """002-R40: a client that speaks TLS to a port without."""
    with Router(backend.url, **NEVER) as router:
        answer = router.exchange(bytes.fromhex("16030100c8010000c40303") + b"\x11" * 180)
        assert answer.startswith(b"HTTP/1.1 400 ") and b'"bad_request"' in answer


def test_the_size_of_a_header_field_is_a_variable(backend):
    """002-R40"""
    with Router(backend.url, MAX_HEADER_FIELD_BYTES="20000") as router:
        assert router.get("/healthz", {"Authorization": "Bearer " + "a" * 19_000}).status == 200
        answer = router.get("/healthz", {"Cookie": "a" * 20_001})
        assert (answer.status, answer.error["code"]) == (431, "bad_request")


def test_a_head_is_bounded_as_a_whole(backend):
    """002-R40: it takes memory while it comes."""
    with Router(backend.url, MAX_HEADER_FIELD_BYTES="1000", **NEVER) as router:
        answer = router.exchange(PROBE[:-2] + b"A: %s\r\n" % (b"x" * 900) * 20)
        assert answer.startswith(b"HTTP/1.1 431 ") and b'"bad_request"' in answer


def test_the_health_address_makes_room_too(backend):
    """007-R1, 007-R2"""
    with with_health_address(backend, WORKER_CONNECTIONS="20", **NEVER) as (router, port):
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                client = stack.enter_context(
                    socket.create_connection(("127.0.0.1", port), DEADLINE_S))
                client.sendall(b"G")
            assert router.get("/healthz", port=port).status == 200


def test_the_bodies_in_flight_are_bounded_until_they_commit(backend):
    """007-R20"""
    held, waits = Held(), threading.Event()

    def waiting(exchange):
        assert waits.wait(DEADLINE_S)
        held(exchange)

    backend.on("a", waiting)
    with Router(backend.url, MAX_REQUEST_BYTES="100000", MAX_BODY_BYTES_IN_FLIGHT="150000",
                **NEVER) as router:
        with sending(router, request("a", size=100_000)) as [first]:
            backend.wait_for("a")
            for form in (b"Content-Length: 60000\r\n\r\n",
                         b"Transfer-Encoding: chunked\r\n\r\n11170\r\n" + b" " * 70_000):
                answer = router.exchange(POST + form)
                assert answer.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in answer
                assert b"Retry-After: " in answer
            assert router.chat("b").status == 200
            waits.set()
            read_until(first, b"first")
            assert router.post(b'{"model": "b"}'.ljust(100_000)).status == 200
            held.go_on.set()
            read_until(first, b"[DONE]")


def test_bodies_that_are_only_announced_keep_no_small_one_out(backend):
    """007-R24: nine of them, each of which comes again as soon as it has been refused."""
    over = threading.Event()

    def announce(port):
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(
                    ("127.0.0.1", port), DEADLINE_S) as client:
                client.sendall(POST + b"Content-Length: 33554432\r\n\r\n{")
                client.recv(1000)

    with Router(backend.url, **NEVER) as router:
        router.wait_until_fed()
        leaning = [threading.Thread(target=announce, args=(router.port,)) for _ in range(9)]
        for thread in leaning:
            thread.start()
        router.wait_for_lines(lambda line: line.get("code") == "overloaded")
        assert [router.chat("a").status for _ in range(50)] == [200] * 50
        over.set()
    for thread in leaning:
        thread.join()


def test_dripped_bodies_that_come_again_keep_no_probe_out(backend):
    """007-R25: three times as many as there are connections, chunked."""
    over = threading.Event()

    def drip(port):
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(
                    ("127.0.0.1", port), DEADLINE_S) as client:
                client.settimeout(0.05)
                client.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
                while not over.is_set():
                    client.sendall(b"1\r\n \r\n")
                    with contextlib.suppress(TimeoutError):
                        if not client.recv(1000):
                            break

    with Router(backend.url, WORKER_CONNECTIONS="20", **NEVER) as router:
        leaning = [threading.Thread(target=drip, args=(router.port,)) for _ in range(60)]
        for thread in leaning:
            thread.start()
        router.wait_for_lines(lambda line: line.get("code") == "overloaded", 60)
        for _ in range(5):
            assert router.get("/healthz").status == 200
        over.set()
    for thread in leaning:
        thread.join()


class Uploads:
    """Requests whose bodies come steadily, 100 KB a second; each of them begins a little later."""

    def __init__(self, router, count, pieces):
        self.answers, self.over = [], threading.Event()
        body = json.dumps({"model": "a", "stream": True}).encode().ljust(pieces * 5_000)
        self._head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._pieces = [body[at:at + 5_000] for at in range(0, len(body), 5_000)]
        self._threads = [threading.Thread(target=self._upload, args=(router.port,))
                         for _ in range(count)]
        for thread in self._threads:
            thread.start()
            self.over.wait(0.02)

    def _upload(self, port):
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
            client.sendall(self._head)
            with contextlib.suppress(OSError):
                for piece in self._pieces:
                    client.sendall(piece)
                    if self.over.wait(0.05):
                        break
            if not self.over.is_set():
                self.answers.append(read_to_end(client)[9:12])

    def alive(self):
        return [thread for thread in self._threads if thread.is_alive()]

    def end(self):
        self.over.set()
        self.join()

    def join(self):
        for thread in self._threads:
            thread.join()


def test_bodies_that_fill_a_worker_are_all_served(backend):
    """007-R25: for a connection that nobody waits for none has to give way."""
    with Router(backend.url, WORKER_CONNECTIONS="12", **NEVER) as router:
        router.wait_until_fed()
        uploads = Uploads(router, 12, 30)
        uploads.join()
        assert uploads.answers == [b"200"] * 12


def test_a_probe_at_a_worker_full_of_bodies_costs_one_of_them(backend):
    """007-R25"""
    with Router(backend.url, WORKER_CONNECTIONS="12", **NEVER) as router:
        router.wait_until_fed()
        uploads = Uploads(router, 12, 400)
        router.wait_for_connections(12)
        assert router.get("/healthz").status == 200
        assert router.chat("a").status == 200
        until(lambda: uploads.answers == [b"503"])
        uploads.end()


def test_bodies_that_are_only_announced_end_no_upload(backend):
    """007-R24: as many as the memory takes, again and again."""
    with Router(backend.url, MAX_REQUEST_BYTES="1000000", MAX_BODY_BYTES_IN_FLIGHT="3000000",
                **NEVER) as router:
        router.wait_until_fed()
        uploads = Uploads(router, 4, 30)
        announced = POST + b"Content-Length: 1000000\r\n\r\n{"
        while uploads.alive():
            with sending(router, announced, 4):
                uploads.over.wait(0.2)
        uploads.join()
        assert uploads.answers == [b"200"] * 4


def test_an_announced_length_gives_a_body_more_time(backend):
    """002-R1"""
    body = b'{"model": "a"}'.ljust(600_000)
    with Router(backend.url, CLIENT_BODY_TIMEOUT_MS="50") as router:
        with sending(router, POST + b"Content-Length: 600000\r\n\r\n" + body[:-1]) as [client]:
            # Refused in the meantime: it announces nothing.
            chunked = router.exchange(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{")
            assert chunked.startswith(b"HTTP/1.1 408 ")
            client.sendall(body[-1:])
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_one_model_that_hangs_takes_half_of_the_places(backend):
    """007-R22, 002-R52"""
    backend.on("a", silent)
    with Router(backend.url, MAX_INFLIGHT_REQUESTS="8",
                UPSTREAM_HEADER_TIMEOUT_MS="60000") as router:
        router.wait_until_fed()
        with sending(router, request("a"), 4):
            until(lambda: len(backend.seen("a")) == 4)
            refused = router.chat("a")
            assert (refused.status, refused.error["code"]) == (503, "overloaded")
            assert refused.value("Retry-After")
            # Nothing has been tried.
            refused = router.chat("gone,a")
            assert refused.error["code"] == "overloaded"
            assert refused.value("x-chutes-autopilot-skipped") is None
            assert router.chat("b").status == 200
            # A list goes on to the next, and no attempt is made on the first.
            listed = router.chat("a,b", headers={"X-Request-Id": "listed"})
            assert listed.value("X-Chutes-Autopilot-Selected") == "b"
            assert listed.value("X-Chutes-Autopilot-Skipped") == "a;full"
            assert [each["model"] for each in router.record("listed")["attempts"]] == ["b"]
        until(lambda: router.metrics()["requests_active",] == 0)
        backend.on("a", held := Held())
        with sending(router, request("a")) as [client]:
            read_until(client, b"first")
            held.go_on.set()
            read_until(client, b"[DONE]")


def test_a_worker_with_one_connection_still_answers_probes(backend):
    """007-R1"""
    backend.on("a", held := Held())
    with Router(backend.url, WORKER_CONNECTIONS="1") as router:
        with sending(router, request("a")) as [stream]:
            read_until(stream, b"first")
            assert router.get("/healthz").status == 200
            assert router.chat("b").error["code"] == "overloaded"
            held.go_on.set()
            read_until(stream, b"[DONE]")


def test_with_fewer_files_than_connections_there_are_fewer_connections(backend):
    """007-R12"""
    port = free_port()
    router = Router(backend.url, WORKER_CONNECTIONS="1000", **NEVER,
                    HEALTH_LISTEN_ADDR=f"127.0.0.1:{port}")
    router.command = ["prlimit", "--nofile=200:200", *router.command]
    with router:
        [said] = [line for line in router.lines if str(line["message"]).startswith("too few open")]
        assert (said["asked"], said["allowed"], said["taken"]) == (1000, 200, 33)
        with sending(router, b"", 150):
            for address in (port, router.port):
                assert router.get("/healthz", port=address).status == 200
            assert router.chat("a").status == 200
        assert not [line for line in router.lines if "Too many open files" in str(line)]


@pytest.mark.parametrize("fields", ["Content-Encoding: gzip", "Content-Encoding: identity, br"])
def test_a_packed_body_is_refused_by_the_name_of_its_coding(router, upstream, fields):
    """002-R40"""
    before = len(upstream.exchanges)
    answer = router.exchange(request("a", fields.encode(), b"Connection: close"))
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert head.startswith(b"HTTP/1.1 415 ") and error["code"] == "unsupported_encoding"
    assert fields.rpartition(" ")[2] in error["message"] and error["param"] is None
    assert b"\r\nAccept-Encoding: identity" in head
    assert len(upstream.exchanges) == before


def test_identity_is_no_coding(router, model):
    """002-R40"""
    answer = router.exchange(request(model(), b"Content-Encoding: identity", b"Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")


EXPECTS = b"Expect: 100-continue\r\n"
LENGTH = b"Content-Length: 14\r\n\r\n"


@pytest.mark.parametrize("head, status", [
    (POST + EXPECTS + b"Content-Length: 20001\r\n\r\n", 413),
    (POST + EXPECTS + b"Content-Encoding: gzip\r\n" + LENGTH, 415),
    (POST + EXPECTS + b"Host: y\r\n" + LENGTH, 400),
    (POST.replace(b": x", b": x/y") + EXPECTS + LENGTH, 400),
    (POST.replace(b"/v1/", b"/v2/") + EXPECTS + LENGTH, 404),
    (POST.replace(b"POST", b"PUT") + EXPECTS + LENGTH, 405)])
def test_a_body_that_will_be_refused_is_not_asked_for(router, head, status):
    """002-R40"""
    assert router.exchange(head).startswith(b"HTTP/1.1 %d " % status)


def test_a_body_that_is_wanted_is_asked_for_once(router, model):
    """002-R40"""
    body = json.dumps({"model": model()}).encode()
    with sending(router, POST + EXPECTS + b"Content-Length: %d\r\n\r\n" % len(body)) as [client]:
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("options", [b"TE, close", b"close, TE", b"CLOSE , x",
                                     b"x\r\nConnection: close"])
def test_a_client_that_asks_for_the_end_among_other_things_gets_it(router, options):
    """006-W20"""
    answer = router.exchange(PROBE[:-2] + b"Connection: " + options + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and b"Connection: close" in answer


@pytest.mark.parametrize("field", [b"Connection: closed", b"X: close", b"Connection: keep-alive"])
def test_nothing_else_asks_for_the_end(router, field):
    """006-W20"""
    with sending(router, PROBE[:-2] + field + b"\r\n\r\n") as [client]:
        assert b"Connection: keep-alive" in read_until(client, b"ok")


HOSTS = [b"x", b"X.test:80", b"127.0.0.1:8080", b"[::1]:8080", b"my_service", b"x:", b"a-b.c."]


@pytest.mark.parametrize("host", HOSTS)
def test_a_valid_host_is_taken(router, host):
    """006-W20"""
    with sending(router, PROBE.replace(b": x", b": " + host)) as [client]:
        assert b" 200 " in read_until(client, b"ok")


# The one that `make clients` installs, or else the system's.
NODE = shutil.which("node", path=f"{ROOT}/.venv/clients/bin:{os.environ['PATH']}")
SIZES_MB = (2, 8, 33, 100)
FETCH = """
const [port, ...sizes] = process.argv.slice(2);
for (const size of sizes) {
  try {
    const answer = await fetch(`http://127.0.0.1:${port}/v1/chat/completions`,
      {method: "POST", body: Buffer.alloc(size * 1000000, 120)});
    console.log(answer.status, (await answer.json()).error.code);
  } catch (error) { console.log(error.cause?.code ?? error); }
}
"""


def test_nodes_fetch_sees_a_refusal_while_it_sends(router, tmp_path):
    """002-R1: it reads nothing as long as it can write, and gives up when it cannot."""
    script = tmp_path / "fetch.mjs"
    script.write_text(FETCH)
    said = subprocess.run(
        [NODE, script, str(router.port), *map(str, SIZES_MB)],
        capture_output=True, text=True, timeout=DEADLINE_S * 3, check=True).stdout
    assert said.splitlines() == ["413 request_too_large"] * len(SIZES_MB)


def test_a_service_that_was_frozen_goes_on_and_a_worker_that_hangs_is_replaced(backend):
    """007-R21: with ten seconds of gunicorn's timeout in place of thirty."""
    backend.on("a", held := Held())
    router = Router(backend.url)
    router.command = [*router.command, "--timeout", "10"]
    with router, sending(router, request("a")) as [stream]:
        read_until(stream, b"first")
        worker = router.worker_of(stream)
        for pid in (router.process.pid, worker):
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(13)
        os.kill(router.process.pid, signal.SIGCONT)
        # The master looks before the worker shows that it lives.
        threading.Event().wait(1.5)
        os.kill(worker, signal.SIGCONT)
        held.go_on.set()
        read_until(stream, b"[DONE]")
        assert router.get("/healthz").status == 200 and router.worker_of(stream) == worker
        threading.Event().wait(2)
        assert not [line for line in router.lines if line.get("level") in ("ERROR", "CRITICAL")]
        os.kill(worker, signal.SIGSTOP)
        router.wait_for_lines(lambda line: line["message"].startswith("WORKER TIMEOUT"))
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 2)


def test_clients_who_leave_in_their_body_give_everything_back(backend):
    """007-R20"""
    with Router(backend.url, MAX_REQUEST_BYTES="100000", MAX_BODY_BYTES_IN_FLIGHT="100000",
                **NEVER) as router:
        for _ in range(5):
            with sending(router, POST + b"Content-Length: 100000\r\n\r\n{"):
                router.wait_for_connections(1)
            until(lambda: router.metrics()["requests_active",] == 0)
        assert router.post(b'{"model": "a"}'.ljust(100_000)).status == 200


def test_a_keepalive_connection_outlives_requests_of_all_kinds(backend):
    """007-R1: what one request sets ends with it."""
    with Router(backend.url) as router:
        connection = router.connect()
        for body, status in ((b'{"model": "a"}', 200), (b"{", 400), (b'{"model": "b"}', 200)):
            connection.request("POST", "/v1/chat/completions", body)
            answer = Answer(connection.getresponse())
            assert (answer.status, answer.value("Connection")) == (status, "keep-alive")
        connection.close()

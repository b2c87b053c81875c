"""One sticky choice and one picture: across workers, restarts and replicas."""

import contextlib
import os
import random
import signal
import socket
import sqlite3
import statistics
import threading
import time

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.redis_server import RedisServer
from tests.support.router import Router
from tests.support.upstream import Upstream, complete, unavailable

ALIAS = "chutesai/AutoPilot"
NAMES = ["a", "b", "c", "d"]
SHARED = {"STICKY_HASH_SECRET": "of both replicas"}


def rows(best):
    return [utilization_row(name, active=40 if name == best else 4) for name in NAMES]


@pytest.fixture
def upstream():
    with Upstream(models=models_feed(NAMES), rows=rows("a")) as server:
        yield server


@contextlib.contextmanager
def changing_ranking(upstream):
    """Let another model be the best one every few milliseconds."""
    over = threading.Event()

    def change():
        draw = random.Random(1)
        while not over.wait(0.01):
            upstream.rows = rows(draw.choice(NAMES))
    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def picked(answer):
    assert answer.status == 200
    return answer.value("x-chutes-autopilot-selected")


def picks(routers, headers, count, wanted=ALIAS):
    """Return the models of `count` requests, each on a connection of its own."""
    return [picked(routers[n % len(routers)].chat(wanted, headers=headers))
            for n in range(count)]


FAST = {"UTILIZATION_REFRESH_MS": "20"}


@pytest.mark.parametrize("who", [
    {"Authorization": "Bearer one-token"}, {"X-Forwarded-For": "192.0.2.1, 10.0.0.1"}])
def test_one_client_has_one_model_whichever_of_four_workers_serves_it(upstream, who):
    """005-R8, 005-R2"""
    trust = {"TRUST_PROXY_HEADERS": "on", "TRUSTED_PROXY_CIDRS": "127.0.0.0/8"}
    with Router(upstream.url, WEB_CONCURRENCY="4", **FAST, **trust) as router:
        router.wait_until_fed()
        with changing_ranking(upstream):
            assert len(set(picks([router], who, 200))) == 1
            others = {picked(router.chat(ALIAS, headers={"X-Forwarded-For": f"192.0.2.{n}"}))
                      for n in range(2, 60)}
        assert len(others) > 1  # the ranking did change
        serving = {line["pid"] for line in router.lines if line["message"] == "request"}
        assert len(serving) > 1


def test_a_failure_moves_the_client_for_every_worker(upstream):
    """005-R5, 005-R8"""
    who = {"Authorization": "Bearer one-token"}
    with Router(upstream.url, WEB_CONCURRENCY="4") as router:
        router.wait_until_fed()
        assert set(picks([router], who, 20)) == {"a"}
        upstream.on("a", unavailable)
        moved = picked(router.chat(ALIAS, headers=who))
        upstream.on("a", complete(b"{}"))
        before = len(upstream.seen("a"))
        assert set(picks([router], who, 60)) == {moved} and moved != "a"
        assert len(upstream.seen("a")) == before


def test_a_worker_that_starts_late_knows_the_choices_and_the_picture(upstream):
    """005-R8, 003-R12"""
    who = {"Authorization": "Bearer one-token"}
    with Router(upstream.url, UTILIZATION_REFRESH_MS="3600000") as router:
        router.wait_until_fed()
        assert picked(router.chat("c,a", headers=who)) == "c"
        upstream.feed_status = 500
        [ready] = router.wait_for_lines(lambda line: line["message"] == "worker ready")
        os.kill(ready["pid"], signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 2)
        router.wait_for_lines(lambda line: line["message"] == "feed refreshed", 4)
        assert router.get("/readyz").status == 200
        assert picked(router.chat(ALIAS, headers=who)) == "c"


def test_killed_in_the_middle_of_writing_everything_still_opens(upstream, tmp_path):
    """005-R8, 003-R11"""
    settings = {"STATE_DIR": str(tmp_path), "UTILIZATION_REFRESH_MS": "20",
                "MODELS_REFRESH_MS": "20", "WEB_CONCURRENCY": "2"}
    with Router(upstream.url, **settings) as router:
        router.wait_until_fed()
        over = threading.Event()

        def keep_asking(number):
            while not over.is_set():
                with contextlib.suppress(OSError, ValueError):
                    router.chat("a,b", headers={"Authorization": f"Bearer {number}"})

        threads = [threading.Thread(target=keep_asking, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for killed in range(3):
            ready = router.wait_for_lines(
                lambda line: line["message"] == "worker ready", 2 + killed)
            os.kill(ready[-1]["pid"], signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 5)
        assert picked(router.chat("a,b")) in "ab"
        directory = router.runtime_directory()
        router.process.kill()
        over.set()
        for thread in threads:
            thread.join()
        router.process.wait()
    with contextlib.closing(sqlite3.connect(f"{directory}/choices.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM sticky").fetchone()[0] >= 4
    upstream.feed_status = 500
    with Router(upstream.url, **settings) as router:
        router.wait_until_fed()
        assert router.chat(ALIAS).status == 200
        # What the killed master left is gone, with the lock that only it and its workers held.
        assert not directory.exists()
        directory = router.runtime_directory()
    assert not directory.exists()


def test_a_reload_keeps_the_choices_and_another_router_leaves_them_alone(upstream):
    """005-R8"""
    who = {"Authorization": "Bearer one-token"}
    with Router(upstream.url) as router:
        router.wait_until_fed()
        directory = router.runtime_directory()
        assert picked(router.chat("c,a", headers=who)) == "c"
        with Router(upstream.url) as another:
            assert another.runtime_directory() != directory
        assert directory.exists()
        router.process.send_signal(signal.SIGHUP)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 2)
        router.wait_for_lines(lambda line: "Worker exiting" in line["message"])
        assert picked(router.chat(ALIAS, headers=who)) == "c"
        assert router.runtime_directory() == directory
    assert not directory.exists()


def test_a_restart_while_both_feeds_are_down_routes_from_what_was_saved(upstream, tmp_path):
    """003-R11"""
    with Router(upstream.url, STATE_DIR=str(tmp_path)) as router:
        router.wait_until_fed()
    upstream.feed_status = 500
    started = time.monotonic()
    with Router(upstream.url, STATE_DIR=str(tmp_path)) as router:
        router.wait_until_fed()
        assert picked(router.chat(ALIAS)) == "a"
        print(f"first routed answer {time.monotonic() - started:.2f} s after the start")
        assert router.get("/readyz").status == 200
    with Router(upstream.url, STATE_DIR=str(tmp_path), READYZ_MAX_SNAPSHOT_AGE_MS="50") as router:
        router.wait_until_fed()
        # Judged by its true age, not by when it was read.
        assert router.get("/readyz").error["code"] == "stale_snapshot"
        assert router.chat(ALIAS).status == 200
    (tmp_path / "utilization.feed").write_bytes(b"\0" * 1000)
    with Router(upstream.url, STATE_DIR=str(tmp_path)) as router:
        router.wait_for_lines(lambda line: line["message"] == "saved feed ignored")
        assert router.get("/readyz").error["code"] == "not_ready"


def test_two_replicas_on_one_redis_agree(upstream):
    """005-R9"""
    who = {"Authorization": "Bearer one-token"}
    with RedisServer() as redis:
        settings = {"STICKY_URL": redis.url, **SHARED, **FAST, "WEB_CONCURRENCY": "2"}
        with Router(upstream.url, **settings) as one, Router(upstream.url, **settings) as two:
            one.wait_until_fed()
            two.wait_until_fed()
            with changing_ranking(upstream):
                [model] = set(picks([one, two], who, 200))
            # One round trip a request: a choice that has not changed is not written.
            commands = redis.command("INFO", "commandstats").decode()
            calls = {line.split(":")[0].removeprefix("cmdstat_"):
                     int(line.split("calls=")[1].split(",")[0])
                     for line in commands.splitlines() if line.startswith("cmdstat_")}
            assert (calls["getex"], calls["set"]) == (200, 1)
            key = redis.command("KEYS", "*").decode()
            assert "one-token" not in key and "chutes-autopilot:sticky:" in key
            ttl = redis.command("TTL", key.splitlines()[2]).decode()
            assert 1700 < int(ttl.strip(":\r\n")) <= 1800
            upstream.on(model, unavailable)
            moved = picked(one.chat(ALIAS, headers=who))
            upstream.on(model, complete(b"{}"))
            assert moved != model and set(picks([one, two], who, 40)) == {moved}


def test_replicas_agree_on_what_a_lists_failover_has_found(upstream):
    """005-R17, 005-R16"""
    who = {"Authorization": "Bearer one-token"}
    with RedisServer() as redis:
        settings = {"STICKY_URL": redis.url, **SHARED}
        with Router(upstream.url, **settings) as one, Router(upstream.url, **settings) as two:
            one.wait_until_fed()
            two.wait_until_fed()
            assert set(picks([one, two], who, 4, "c,a")) == {"c"}
            upstream.on("c", unavailable)
            assert picked(one.chat("c,a", headers=who)) == "a"
            upstream.on("c", complete(b"{}"))
            assert set(picks([one, two], who, 8, "c,a")) == {"a"}
            # What a replica of an earlier version writes was made by no list.
            key = redis.command("KEYS", "*").decode().splitlines()[2]
            redis.command("SET", key, "a")
            assert set(picks([one, two], who, 2)) == {"a"}
            assert set(picks([one, two], who, 4, "c,a")) == {"c"}


def hurried(router, count, who=None):
    """Send requests one after the other; return how many failed and the seconds each took."""
    failed, took = 0, []
    for number in range(count):
        started = time.monotonic()
        answer = router.chat("b,a", headers=who or {"Authorization": f"Bearer {number}"})
        took.append(time.monotonic() - started)
        failed += answer.status != 200
    return failed, took


TROUBLES = {
    "killed": lambda redis: redis.kill(),
    "frozen": lambda redis: redis.freeze(),
    "full": lambda redis: redis.command("CONFIG", "SET", "maxmemory", "1"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_redis_in_trouble_costs_no_request_and_little_time(upstream, trouble):
    """005-R9, 005-R7"""
    who = {"Authorization": "Bearer one-token"}
    with RedisServer() as redis:
        settings = {"STICKY_URL": redis.url, **SHARED, "WEB_CONCURRENCY": "2"}
        with Router(upstream.url, **settings) as router:
            router.wait_until_fed()
            failed, calm = hurried(router, 60)
            assert failed == 0 and picked(router.chat("b,a", headers=who)) == "b"
            TROUBLES[trouble](redis)
            failed, troubled = hurried(router, 200)
            assert failed == 0
            added_ms = (max(troubled) - statistics.median(calm)) * 1000
            print(f"redis {trouble}: 0 of 200 requests lost, worst added {added_ms:.0f} ms")
            # This host still remembers what it chose meanwhile.
            assert picked(router.chat("c,d", headers=who)) in "cd"
            assert len(set(picks([router], {"Authorization": "Bearer new"}, 30, "d,c"))) == 1
            said = [line for line in router.lines if line["message"] == "sticky store"
                    and line["failing"]]
            assert len({line["pid"] for line in said}) == len(said)


def test_a_client_that_leaves_while_its_choice_is_being_written_takes_the_upstream_along(upstream):
    """006-W1, 005-R9"""
    with RedisServer() as redis:
        with Router(upstream.url, STICKY_URL=redis.url, **SHARED) as router:
            router.wait_until_fed()
            assert picked(router.chat("b,a")) == "b"
            client = socket.create_connection(("127.0.0.1", router.port), 10)

            def freeze_answer_and_leave(exchange):
                redis.freeze()
                exchange.head(200, ("Transfer-Encoding", "chunked"))
                exchange.chunk(b"first")
                client.close()
                exchange.until_closed()

            upstream.on("c", freeze_answer_and_leave)
            body = b'{"model":"c,d"}'
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                           b"X-Request-Id: gone\r\nContent-Length: %d\r\n\r\n%s"
                           % (len(body), body))
            assert upstream.wait_for("c").closed.wait(1)
            assert router.record("gone")["ended"] == "client_gone"
            assert router.metrics()["requests_active",] == 0


def test_redis_that_comes_back_is_asked_again(upstream):
    """005-R9"""
    who = {"Authorization": "Bearer one-token"}
    with RedisServer() as redis:
        settings = {"STICKY_URL": redis.url, **SHARED}
        with Router(upstream.url, **settings) as router:
            router.wait_until_fed()
            redis.kill()
            assert set(picks([router], who, 10, "c,a")) == {"c"}
            with RedisServer(redis.port) as again:
                for _ in range(2000):
                    assert picked(router.chat(ALIAS, headers=who)) == "c"
                    if router.lines[-1]["message"] == "sticky store" or any(
                            line["message"] == "sticky store" and not line["failing"]
                            for line in router.lines):
                        break
                else:
                    raise AssertionError("Redis was never asked again")
                assert picked(router.chat("d,b", headers={"Authorization": "Bearer x"})) == "d"
                assert b"sticky:" in again.command("KEYS", "*")


def garbage_server(answer):
    """Answer whatever is asked with the same bytes."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve(sock):
        with sock, contextlib.suppress(OSError):
            while sock.recv(65536):
                sock.sendall(answer)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    return listener


@pytest.mark.parametrize("answer, an_error", [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", True), (b"*1000000\r\n", True), (b"\xff\xfe\r\n", True),
    (b"%2\r\n", True), (b"", True), (b"+OK\r\n", False), (b":5\r\n", False),
    (b"$3\r\n\xff\xff\xff\r\n", False)])
def test_redis_that_answers_garbage_costs_no_request(upstream, answer, an_error):
    """005-R9, 005-R7"""
    with garbage_server(answer) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        with Router(upstream.url, STICKY_URL=url, **SHARED) as router:
            router.wait_until_fed()
            failed, _ = hurried(router, 30)
            assert failed == 0
            assert (router.metrics()["sticky_errors_total", "distributed"] > 0) is an_error
            assert len(set(picks([router], {"Authorization": "Bearer x"}, 10, "d,c"))) == 1
        listener.shutdown(socket.SHUT_RDWR)


def test_redis_that_is_down_at_the_start_does_not_matter(upstream):
    """005-R9"""
    with Router(upstream.url, STICKY_URL="redis://127.0.0.1:1", **SHARED) as router:
        router.wait_until_fed()
        assert hurried(router, 20)[0] == 0

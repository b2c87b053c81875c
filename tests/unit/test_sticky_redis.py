"""The Redis sticky store's own decisions, with a stand-in for the client library."""

import logging
import pathlib
import socket
import threading

import pytest
import redis
from gevent import GreenletExit

from app.dialing.dialer import Dialer
from app.dialing.names import Names
from app.sticky import redis_connections
from app.sticky.redis import _DISCARD, _READ, DEADLINE_S, RedisStickyStore
from app.sticky.sqlite import SqliteStickyStore
from app.upstream.tls import trusting
from tests.support.redis_server import RedisServer


class Redis:
    """Stands in for the connections: a dict, a clock that each call moves, an error to raise.

    errors  by command; None: of every command
    """

    def __init__(self):
        self.entries, self.calls, self.now, self.takes_s = {}, [], 100.0, 0.001
        self.errors, self.taken, self.given_back, self.dropped = {}, 0, 0, 0
        self.ready = True

    def take(self):
        self.taken += 1
        return self if self.ready else None

    def give_back(self, connection):
        self.given_back += 1

    def drop(self, connection):
        self.dropped += 1

    def keep(self):
        pass

    def send_command(self, name, *words):
        name = {_READ: "read", _DISCARD: "discard"}.get(words[0], name)
        self.calls.append(name)
        self.words = words

    def read_response(self, disconnect_on_error):
        assert not disconnect_on_error
        self.now += self.takes_s
        name, words = self.calls[-1], self.words
        error = self.errors.get(name, self.errors.get(None))
        if error is not None:
            raise error
        if name == "SET":
            self.entries[words[0]] = words[1]
        elif name == "discard":
            if self.entries.get(words[2], "").partition("\n")[0] == words[3]:
                del self.entries[words[2]]
        else:
            return self.entries.get(words[0] if name in ("GETEX", "GET") else words[2])


@pytest.fixture
def library():
    return Redis()


@pytest.fixture
def store_for(library):
    stores = []

    def build():
        host_store = SqliteStickyStore(pathlib.Path(":memory:"), 60, 10, lambda: library.now)
        store = RedisStickyStore("redis://h", trusting(""), Dialer(Names()), 60, host_store,
                                 lambda: library.now)
        store._connections = library
        stores.append(host_store)
        return store
    yield build
    for host_store in stores:
        host_store.close()


def used(store, model, client="client"):
    choice = store.get(client)
    store.put(client, model, choice)
    return choice.model


def test_a_choice_made_while_redis_was_away_is_told_to_it_when_it_is_back(store_for, library):
    """005-R9"""
    one, two = store_for(), store_for()
    library.errors = {None: redis.ConnectionError()}
    used(one, "a")
    assert used(one, "a") == "a"
    library.errors, library.now = {}, library.now + 10
    assert used(one, "a") == "a"
    assert two.get("client").model == "a"


def test_the_hosts_own_store_is_kept_up_to_date_and_its_entries_in_use_do_not_expire(
        store_for, library):
    """005-R9, 005-R6"""
    store = store_for()
    for _ in range(10):
        used(store, "a")
        library.now += 30
    library.errors = {None: redis.ConnectionError()}
    for _ in range(10):
        assert used(store, "a") == "a"
        library.now += 30


def test_a_look_renews_nothing_and_finds_what_the_host_knows_while_redis_is_away(
        store_for, library):
    """005-R9, 008-R25"""
    store = store_for()
    used(store, "a")
    looked = store.look("client")
    assert (looked.model, looked.renewed, library.calls[-1]) == ("a", False, "GET")
    library.errors = {None: redis.ConnectionError()}
    assert store.look("client").model == "a" and store.look("other").model is None


@pytest.fixture
def replicas(library, store_for):
    """Two replicas whose monotonic clocks began at other times; the wall clock is at 5,000 s."""
    one, two = store_for(), store_for()
    for store, ahead in ((one, 0.0), (two, 70.0)):
        store._clock = lambda ahead=ahead: library.now + ahead
        store._wall_clock = lambda: library.now + 4900.0
    return one, two


def test_replicas_know_when_a_lists_failover_made_a_choice(replicas, library):
    """005-R17"""
    (one, two), library.takes_s = replicas, 0.0
    one.put("client", "b", one.get("client"), by_list=True)
    assert library.entries["chutes-autopilot:sticky:client"] == "b\n5000.000"
    library.now += 30
    assert (two.get("client").model, two.get("client").moved_at) == ("b", 170.0)
    used(two, "b")
    assert one.get("client").moved_at == 100.0
    # A failover that ends at the model again makes the choice anew; another success clears it.
    one.put("client", "b", one.get("client"), by_list=True)
    assert two.get("client").moved_at == 200.0
    used(two, "a")
    assert (one.get("client").model, one.get("client").moved_at) == ("a", None)
    assert library.entries["chutes-autopilot:sticky:client"] == "a"


def test_a_choice_of_a_list_survives_while_redis_is_away(replicas, library):
    """005-R17, 005-R9"""
    (one, two), library.takes_s = replicas, 0.0
    library.errors = {None: redis.ConnectionError()}
    one.put("client", "b", one.get("client"), by_list=True)
    library.now += 20
    assert one.get("client").moved_at == 100.0
    # It is asked again after a pause.
    library.errors, library.now = {}, library.now + 2
    used(one, "b")
    assert two.get("client").moved_at == 170.0


@pytest.mark.parametrize("value, model, moved_at", [
    ("b", "b", None), ("b\n", "b", None), ("b\nsoon", "b", None), ("b\n4990.5", "b", 90.5),
    ("b\n9999", "b", 100.0)])
def test_what_other_versions_and_clocks_wrote_is_read(replicas, library, value, model, moved_at):
    """005-R17"""
    (one, _), library.takes_s = replicas, 0.0
    library.entries["chutes-autopilot:sticky:client"] = value
    choice = one.get("client")
    assert (choice.model, choice.moved_at) == (model, moved_at)


def test_an_unchanged_choice_is_one_call(store_for, library):
    """005-R9"""
    store = store_for()
    used(store, "a")
    library.calls.clear()
    used(store, "a")
    assert library.calls == ["GETEX"]


def test_three_failures_in_a_row_open_the_breaker_and_pauses_grow(store_for, library, caplog):
    """005-R9"""
    store = store_for()
    library.errors = {None: redis.ConnectionError()}
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            store.get("client")
        assert len(library.calls) == 3
        for pause, calls in [(1.1, 4), (1.1, 4), (1.0, 5), (4.1, 6), (8.1, 7), (8.1, 8)]:
            library.now += pause
            store.get("client")
            store.get("client")
            assert len(library.calls) == calls
        library.errors, library.now = {}, library.now + 9
        store.get("client")
        store.get("client")
    assert len(library.calls) == 10
    assert [(r.kind, r.failing) for r in caplog.records] == [("failing", True), ("failing", False)]


def test_a_failure_between_successes_is_no_outage(store_for, library):
    """005-R9"""
    store = store_for()
    for turn in range(20):
        library.errors = {None: redis.TimeoutError()} if turn % 2 else {}
        store.get("client")
    assert len(library.calls) == 20


def test_all_calls_for_one_request_share_one_deadline(store_for, library):
    """005-R9"""
    store = store_for()
    library.takes_s = 0.03
    choice = store.get("client")
    store.discard("client", choice)
    store.put("client", "a", choice)
    assert library.calls == ["GETEX", "discard"] and choice.spent_s >= DEADLINE_S
    assert store._host_store.get("client").model == "a"


def test_a_redis_that_refuses_writes_is_said_once_and_not_taken_for_down(
        store_for, library, caplog):
    """005-R7, 005-R9"""
    store = store_for()
    with caplog.at_level(logging.INFO):
        for turn in range(10):
            library.errors = {"SET": redis.ResponseError("OOM")}
            choice = store.get("client")
            store.put("client", "a", choice)
            assert turn == 0 or choice.model == "a"
        library.errors = {}
        used(store, "b")
    assert [(r.kind, r.failing) for r in caplog.records] == [
        ("refusing", True), ("refusing", False)]


def test_garbage_is_no_entry(store_for, library):
    """005-R7"""
    store = store_for()
    for answer in (5, ["a"], b"a", True):
        library.entries = {"chutes-autopilot:sticky:client": answer}
        assert store.get("client").model is None


def test_a_redis_before_6_2_is_asked_in_another_way_from_then_on(store_for, library, caplog):
    """005-R9"""
    store = store_for()
    library.errors = {"GETEX": redis.ResponseError("unknown command 'GETEX', with args ...")}
    with caplog.at_level(logging.INFO):
        assert [used(store, "a") for _ in range(3)] == [None, "a", "a"]
    assert library.calls == ["GETEX", "read", "SET", "read", "read"]
    assert not caplog.records and library.given_back == library.taken


def test_a_command_that_is_refused_says_nothing_of_another(store_for, library, caplog):
    """005-R7: a Redis that refuses to read and takes writes does not make the log flip."""
    store = store_for()
    library.errors = {"GETEX": redis.exceptions.NoPermissionError("NOPERM")}
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            used(store, "a")
    assert [(r.kind, r.command) for r in caplog.records] == [("refusing", "read")]


@pytest.mark.parametrize("error", [
    redis.exceptions.MovedError("1234 127.0.0.1:7001"),
    redis.exceptions.AskError("1234 127.0.0.1:7001"),
    redis.exceptions.ClusterDownError("The cluster is down")])
def test_a_node_of_a_cluster_is_told_in_one_line_and_left_alone(store_for, library, caplog, error):
    """005-R10"""
    store = store_for()
    with caplog.at_level(logging.INFO):
        for turn in range(20):
            library.errors = {} if turn % 3 else {"GETEX": error}
            used(store, "a", f"client {turn}")
            library.now += 30
    [line] = caplog.records
    assert (line.kind, line.failing) == ("cluster", True) and "Redis Cluster" in line.why
    assert len(library.calls) < 30


def test_a_request_that_finds_no_connection_ready_does_not_wait_and_is_no_failure(
        store_for, library, caplog):
    """005-R10"""
    store = store_for()
    library.ready = False
    for _ in range(10):
        store.get("client")
    library.ready = True
    store.get("client")
    assert library.calls == ["GETEX"] and not caplog.records


def test_a_connection_whose_answer_was_not_read_is_not_used_again(store_for, library):
    """005-R10"""
    store = store_for()
    library.errors = {None: redis.TimeoutError()}
    store.get("client")
    library.errors = {None: GreenletExit()}
    with pytest.raises(GreenletExit):
        store.get("client")
    assert (library.dropped, library.given_back) == (2, 0)


class Connection:
    """A connection that opens at once."""

    def __init__(self, *_, **__):
        self.open = False

    def connect(self):
        self.open = True

    def disconnect(self):
        self.open = False

    def can_read(self):
        return False


def test_the_connections_of_a_burst_are_there_for_the_next_one_within_a_minute(monkeypatch):
    """005-R10"""
    monkeypatch.setattr(redis_connections, "_DialedConnection", Connection)
    now = [0.0]
    connections = redis_connections.RedisConnections(
        "redis://h", trusting(""), Dialer(Names()), pytest.fail, lambda: now[0])
    connections.keep()

    def burst():
        """Return how many connections were ready of those that eight at once need."""
        taken = [connections.take() for _ in range(8)]
        for connection in taken:
            connections.give_back(connection)
        return sum(connection in ready for connection in taken)

    def pass_s(seconds):
        for _ in range(seconds):
            now[0] += 1.0
            connections.keep()
        return set(connections._idle.queue)

    ready = pass_s(1)
    assert burst() == 1
    for seconds in (5, 30):
        ready = pass_s(seconds)
        assert burst() == 8 == len(ready)
    ready = pass_s(90)
    assert len(ready) == 1 and all(connection.open for connection in ready)


def test_while_the_resolver_is_silent_the_last_good_address_is_connected_to(monkeypatch):
    """005-R10, 002-R31"""
    monkeypatch.setattr(redis_connections, "_REPLACE_AFTER_S", 1.0)
    now, answers = [0.0], socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    with RedisServer() as server:
        def look_up(host, port, **_):
            assert host == "redis.test"
            if now[0] > 1.0:
                raise socket.gaierror(socket.EAI_AGAIN, "silent")
            return [(*answer[:4], ("127.0.0.1", port)) for answer in answers]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        connections = redis_connections.RedisConnections(
            f"redis://redis.test:{server.port}", trusting(""), Dialer(Names(lambda: now[0])),
            pytest.fail, lambda: now[0])
        connections.keep()
        first = connections.take()
        connections.give_back(first)
        now[0] = 100.0
        connections.keep()
        second = connections.take()
        assert second is not first
        second.send_command("PING")
        assert second.read_response() == "PONG"
        connections.drop(second)


def test_an_address_that_does_not_speak_redis_is_tried_last():
    """005-R10, 002-R30"""
    failures, blamed = [], []
    dialer = Dialer(Names())
    dialer.failed = blamed.append
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connections = redis_connections.RedisConnections(
            f"redis://:word@localhost:{port}", trusting(""), dialer, failures.append)
        answering = threading.Thread(target=lambda: listener.accept()[0].close())
        answering.start()
        connections.keep()
        answering.join()
    assert len(failures) == 1
    assert [address[:2] for address in blamed] == [("localhost", port)]

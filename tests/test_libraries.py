"""What the router relies on in its libraries without their promising it.

Each test stands for one private or undocumented name. After an upgrade a failure says which
assumption no longer holds, and where it is used.
"""

import inspect
import logging
import re
import os
import socket
import ssl
import time

import gevent.socket
import gunicorn.arbiter
import pytest
import redis
import requests
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import get_parser, wsgi
from gunicorn.workers import base
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker
from gunicorn.workers.workertmp import WorkerTmp
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from urllib3 import PoolManager
from werkzeug.datastructures import Headers
from prometheus_client.mmap_dict import MmapedDict
from redis.connection import parse_url
from urllib3.connection import HTTPSConnection, ProxyConfig
from urllib3.util.ssltransport import SSLTransport

REQUEST = (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
           b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")


def names(function):
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


@pytest.fixture
def parser():
    client, server = socket.socketpair()
    with client, server:
        client.sendall(REQUEST)
        yield get_parser(Config(), server, ("192.0.2.1", 1))


def test_gunicorn_calls_the_workers_methods_that_it_overrides():
    """001-R1: RouterWorker overrides these; the base class calls them with these arguments."""
    assert names(GeventWorker.handle_request) == ["self", "listener_name", "req", "sock", "addr"]
    assert names(GeventWorker.handle_error) == ["self", "req", "client", "addr", "exc"]
    assert names(GeventWorker.run) == names(GeventWorker.timeout_ctx) == ["self"]
    assert names(GeventWorker.handle) == ["self", "listener", "client", "addr"]
    assert names(Logger.exception)[0] == "self"


def test_a_gunicorn_worker_knows_its_master_and_its_listeners():
    """007-R3: RouterWorker reads Worker.ppid and Worker.sockets."""
    worker = GeventWorker(0, 12, ["listener"], None, 1, Config(), logging.getLogger())
    worker.tmp.close()
    assert (worker.ppid, worker.sockets) == (12, ["listener"])


def test_a_setting_of_gunicorn_is_looked_up_only_where_it_is_no_attribute():
    """001-R1: RouterWorker makes attributes of Config.settings."""
    config = Config()
    assert "keepalive" not in vars(config)
    vars(config).update((name, each.get()) for name, each in config.settings.items())
    config.set("keepalive", 1234)
    assert config.keepalive == Config().keepalive


def test_a_gunicorn_request_can_be_told_to_close_its_connection(parser):
    """002-R1: ClientSocket.close_after_answer calls Request.force_close."""
    request = next(parser)
    assert not request.should_close()
    request.force_close()
    assert request.should_close()


def test_a_gunicorn_body_that_has_failed_is_not_drained(parser):
    """002-R1: ClientSocket.abandon_body sets Body.failed."""
    request = next(parser)
    assert request.body.failed is False
    request.body.failed = True
    with pytest.raises(StopIteration):
        next(parser)


def test_a_gunicorn_request_shows_what_came_behind_it(parser):
    """007-R3: RouterWorker takes it by Unreader.take_buffered for ClientSocket.recv."""
    request = next(parser)
    assert request.body.read() == b"abc"
    assert request.unreader.take_buffered().startswith(b"GET /next")
    assert request.unreader.take_buffered() == b""


def test_a_gunicorn_request_knows_that_its_client_waits_to_be_asked(parser):
    """002-R40: RouterWorker reads and clears Request._expected_100_continue."""
    assert next(parser)._expected_100_continue is False


def test_werkzeugs_header_fields_are_a_list():
    """002-R16: RelayedResponse puts those of the upstream there."""
    headers = Headers([("A", "1"), ("a", "2")])
    assert headers._list == headers.to_wsgi_list() == [("A", "1"), ("a", "2")]


def test_gunicorn_has_the_app_answer_by_these_steps(parser):
    """002-R16: RouterWorker takes them by itself, and AnswerWriter two of Response's."""
    assert names(wsgi.create)[-2:] == ["response_class", "response_args"]
    steps = inspect.getsource(AsyncWorker.handle_request)
    for step in ("self.nr += 1", "resp.force_close()", "self.wsgi(environ, resp.start_response)",
                 "resp.write(item)", "resp.close()", "respiter.close()", "resp.should_close()"):
        assert step in steps
    assert "self.process_headers(headers)" in inspect.getsource(wsgi.Response.start_response)
    for method in (wsgi.Response.write, wsgi.Response.close):
        assert "self.send_headers()" in inspect.getsource(method)
    assert wsgi.TOKEN_RE.fullmatch("a-b") and not wsgi.HEADER_VALUE_RE.fullmatch("a\r\n")


def test_gunicorns_master_asks_a_workers_heartbeat_when_it_was_touched():
    """007-R21: RouterWorker puts an object of its own in the place of Worker.tmp."""
    assert "worker.tmp.last_update()" in inspect.getsource(gunicorn.arbiter.Arbiter.murder_workers)
    before, heartbeat = time.monotonic(), WorkerTmp(Config())
    heartbeat.notify()
    assert before - 1 <= heartbeat.last_update() <= time.monotonic()
    assert heartbeat.fileno() >= 0
    heartbeat.close()


def test_gunicorn_puts_the_clients_socket_into_the_environment(parser):
    """006-W1: client_of finds the ClientSocket there; without it nothing would be watched."""
    sock = object()
    _, environ = wsgi.create(next(parser), sock, ("192.0.2.1", 1), ("127.0.0.1", 80), Config())
    assert environ["gunicorn.socket"] is sock


def test_gunicorns_master_keeps_signals_in_a_queue():
    """007-R3: gunicorn.conf.py reads Arbiter.SIG_QUEUE in a worker that has just been forked."""
    assert "SIG_QUEUE" in vars(gunicorn.arbiter.Arbiter) or re.search(
        r"^\s+self\.SIG_QUEUE = ", inspect.getsource(gunicorn.arbiter.Arbiter), re.M)


def test_gunicorns_arguments_are_read_by_a_parser_of_its_configuration():
    """001-R14: master.py asks Config.parser for what was given, and each setting for its name."""
    config = Config()
    given = vars(config.parser().parse_args(["-w", "3", "--preload"]))
    assert {name for name, value in given.items() if value is not None} - {"args"} == {
        "workers", "preload_app"}
    assert config.settings["workers"].cli == ["-w", "--workers"]


def test_gunicorns_master_calls_its_own_handle_hup():
    """007-R4: master.py puts a function of its own in its place."""
    source = inspect.getsource(gunicorn.arbiter.Arbiter.run)
    assert 'getattr(self, "handle_%s" % signame' in source


def test_gunicorn_numbers_its_workers_from_the_first_one_on():
    """007-R5: RouterWorker.load_wsgi reads Worker.age."""
    worker = GeventWorker(7, 12, [], None, 1, Config(), logging.getLogger())
    worker.tmp.close()
    assert worker.age == 7 and names(GeventWorker.load_wsgi) == ["self"]


def test_gunicorn_takes_a_workers_heartbeat_from_one_name():
    """007-R13: worker.py puts a subclass in place of base.WorkerTmp, and sets its _tmp."""
    assert "self.tmp = WorkerTmp(cfg)" in inspect.getsource(base.Worker.__init__)
    with open(os.memfd_create("heartbeat"), "w+b", 0) as file:
        tmp = WorkerTmp.__new__(WorkerTmp)
        tmp._tmp = file
        tmp.notify()
        assert tmp.last_update() == pytest.approx(time.monotonic(), abs=60)


def test_a_gevent_socket_has_the_kernels_socket():
    """006-W3: ClientSocket writes and shuts down by socket._sock, Connection reads, all at once."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        with pytest.raises(BlockingIOError):
            theirs._sock.recv(1)
        assert ours._sock.send(b"x") == 1 and ours._sock.fileno() == ours.fileno()
        read = theirs._sock.recv
        assert read(1) == b"x"
    with pytest.raises(OSError, match="Bad file descriptor"):
        read(1)


def test_gevents_loop_counts_its_turns():
    """006-W15: FairShare reads loop.iteration."""
    loop = gevent.get_hub().loop
    before = loop.iteration
    gevent.sleep(1e-9)
    assert loop.iteration > before


def test_requests_iterates_over_any_raw_object_with_a_stream():
    """002-R15: the transport sets Response._content_consumed and makes nothing else."""
    class Raw:
        closed = False

        def stream(self, size, decode_content):
            yield b"piece"

        def close(self):
            self.closed = True

    response = requests.Response.__new__(requests.Response)
    response.raw, response._content_consumed = Raw(), False
    assert list(response.iter_content(chunk_size=None)) == [b"piece"]
    response._content_consumed = False
    response.close()
    assert response.raw.closed


def test_urllib3_takes_a_tls_context_for_a_proxy():
    """002-R10: the endpoint makes a ProxyConfig of four fields."""
    config = ProxyConfig(ssl.create_default_context(), False, None, None)
    assert HTTPSConnection("proxy.test", 443, proxy_config=config).proxy_config is config
    assert ProxyConfig._fields == (
        "ssl_context", "use_forwarding_for_https", "assert_hostname", "assert_fingerprint")


def test_prometheus_names_its_files_by_an_identifier_of_ours():
    """001-R13: the metrics set values.ValueClass before any metric is made."""
    made = []

    def value(*args, **_):
        made.append(args[1])
        return values.MutexValue(*args, **_)

    stock, values.ValueClass = values.ValueClass, value
    try:
        Counter("told", "Says who made it.", registry=CollectorRegistry())
    finally:
        values.ValueClass = stock
    assert "told" in made
    assert names(values.MultiProcessValue) == ["process_identifier"]


def test_urllib3_connects_through_one_method():
    """002-R30: connectors() replaces _new_conn, which connects to _dns_host; all else is kept."""
    ours, theirs = socket.socketpair()

    class Connected(HTTPSConnection):
        def _new_conn(self):
            assert (self._dns_host, self.port) == ("upstream.test.", 443)
            return ours

    with ours, theirs:
        connection = Connected("upstream.test.", 443, ssl_context=ssl.create_default_context())
        theirs.sendall(b"no TLS at all")
        with pytest.raises(ssl.SSLError):
            connection.connect()


def test_urllib3s_pools_make_connections_of_a_class_that_can_be_set():
    """003-R15: the feeds' adapter sets ConnectionPool.ConnectionCls."""
    class Ours(HTTPSConnection):
        pass

    pool = PoolManager().connection_from_url("https://upstream.test")
    pool.ConnectionCls = Ours
    assert isinstance(pool._new_conn(), Ours)


def test_urllib3s_tls_within_tls_has_the_outer_connection():
    """002-R33: Connection takes `cipher` for TLS, and sets options on SSLTransport.socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # Without its handshake.
        inner = SSLTransport.__new__(SSLTransport)
        inner.socket = ours
        assert inner.fileno() == ours.fileno()
    assert hasattr(SSLTransport, "cipher") and hasattr(ssl.SSLSocket, "cipher")
    assert not hasattr(socket.socket, "cipher") and not hasattr(SSLTransport, "setsockopt")


def test_a_histogram_of_prometheus_keeps_each_bucket_by_itself():
    """app/metrics.py puts many values into one at once."""
    registry = CollectorRegistry()
    child = Histogram("h", "", ["x"], buckets=(1, 2), registry=registry).labels("a")
    for bucket, number in enumerate((3, 4, 5)):
        child._buckets[bucket].inc(number)
    child._sum.inc(20)
    assert registry.get_sample_value("h_bucket", {"x": "a", "le": "2.0"}) == 7
    assert registry.get_sample_value("h_count", {"x": "a"}) == 12
    assert registry.get_sample_value("h_sum", {"x": "a"}) == 20


def test_a_file_of_prometheus_grows_in_one_place(tmp_path):
    """007-R13: metric_files.py allocates before MmapedDict._init_value, by _used and _capacity."""
    file = MmapedDict(str(tmp_path / "counter_0.db"))
    before = file._used
    file._init_value("k" * 100)
    assert file._used - before <= 100 + 4 + 8 + 16 <= file._capacity == len(file._m)
    file._init_value("k" * (1 << 17))
    assert file._capacity == 1 << 18 == (tmp_path / "counter_0.db").stat().st_size
    assert file._f.fileno() > 0
    file.close()


def test_prometheus_opens_its_files_anew_when_the_identifier_changes(tmp_path, monkeypatch):
    """007-R14: MetricFiles.keep relies on it, and on values.MmapedDict being what opens a file."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    opened, slots = [], ["0"]

    def open_file(name):
        opened.append(MmapedDict(name))
        return opened[-1]

    monkeypatch.setattr(values, "MmapedDict", open_file)
    monkeypatch.setattr(
        values, "ValueClass", values.MultiProcessValue(process_identifier=lambda: slots[-1]))
    counter = Counter("told", "Says who made it.", registry=CollectorRegistry())
    counter.inc(5)
    (tmp_path / "counter_1.db").write_bytes(opened[0]._m[:])
    slots.append("1")
    counter.inc()
    assert len(opened) == 2 and opened[0]._m is None
    assert [value for _, value, *_ in opened[1].read_all_values()][0] == 6
    opened[1].close()


def test_redis_wraps_a_connected_socket_in_a_method_of_its_own():
    """005-R10: redis_connections.py overrides it, and _connect below it."""
    assert names(redis.Connection._connect) == ["self"]
    assert "sock = super()._connect()" in inspect.getsource(redis.SSLConnection._connect)
    assert names(redis.SSLConnection._wrap_socket_with_ssl) == ["self", "sock"]
    assert "self._wrap_socket_with_ssl(" in inspect.getsource(redis.SSLConnection._connect)


def test_a_redis_connection_has_its_socket_in_an_attribute():
    """005-R10: redis_connections.py looks whether there is anything to read."""
    assert redis.Connection()._sock is None
    assert "self._sock = sock" in inspect.getsource(
        redis.connection.AbstractConnection)


def test_a_redis_connection_is_made_from_the_parts_of_a_url():
    """005-R10: redis_connections.py asks parse_url for class and options."""
    options = parse_url("rediss://user:word@host:1/2")
    assert options.pop("connection_class") is redis.SSLConnection
    assert options == {"host": "host", "port": 1, "db": 2, "username": "user", "password": "word"}

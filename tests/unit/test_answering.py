"""How the server has the app answer a request, and writes what it says."""

import logging
import os

import gevent.socket
import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser, wsgi
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName

from app.answer_writer import AnswerWriter
from app.client_socket import ClientSocket
from app.errors import ClientGone, StreamCut
from app.hang_ups import HangUpWatch
from app.next_head import Patience
from app.worker import RouterWorker

OURS = ("192.0.2.1", 80)
LENGTH = ("Content-Length", "5")
PIECES = [b"", b"one", b"", b"x" * 300, b"12"]
OTHERS = [("X-Odd", "a\tb \xe9"), ("content-type", " text/plain\t "), ("X-Empty", ""),
          ("X-Odd", "2")]
OF_SERVER = [("Date", "1"), ("server", "2"), ("Connection", "close"), ("TE", "3"), ("X-Odd", "4")]


class Request:
    """What a writer looks at."""

    def __init__(self, method, version, closes=False):
        self.method, self.version, self.closes = method, version, closes

    def should_close(self):
        return self.closes


class Sent:
    """A socket that keeps what is written."""

    def __init__(self):
        self.data = b""

    def sendall(self, data):
        self.data += data


class Pieces:
    """A WSGI app and its answer.

    ends_in  raised after the pieces
    """

    def __init__(self, pieces, ends_in=None, fields=()):
        self.pieces, self.ends_in, self.fields, self.closed = pieces, ends_in, list(fields), 0

    def __call__(self, _environ, start_response):
        start_response("200 OK", self.fields)
        return self

    def __iter__(self):
        yield from self.pieces
        if self.ends_in is not None:
            raise self.ends_in

    def close(self):
        self.closed += 1


def written(kind, method, version, status, fields, closes):
    """Return what a writer of gunicorn's or of ours sends."""
    sent = Sent()
    writer = kind(Request(method, version, closes), sent, Config())
    writer.start_response(status, fields)
    for piece in PIECES:
        writer.write(piece)
    writer.close()
    return b"\r\n".join(line for line in sent.data.split(b"\r\n")
                        if not line.startswith(b"Date: "))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", [(1, 0), (1, 1)])
@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("fields", [[], [LENGTH], [*OTHERS, ("content-LENGTH", "7")], OTHERS,
                                    OF_SERVER])
@pytest.mark.parametrize("closes", [False, True])
def test_an_answer_is_framed_as_gunicorn_frames_it(method, version, status, fields, closes):
    """002-R16"""
    asked = method, version, status, fields, closes
    assert written(AnswerWriter, *asked) == written(wsgi.Response, *asked)


@pytest.mark.parametrize("field", [
    ("X-Split", "a\r\nX-More: b"), ("X-Line", "a\n"), ("X-Nul", "\0"), ("X-Wide", "\u0100"),
    ("X Space", "a"), ("", "a"), ("X-Colon:", "a"), ("X-Colon: b", "a"), ("X-Line\r\n", "a"),
    ("X-Line: a\r\nX-More", "b"), ("X-Nul\0a\nX-More", "b"), ("X-Nul", "a\nX-More\0b")])
def test_a_field_that_could_be_read_as_another_is_never_written(field):
    """002-R16"""
    for fields in ([field], [LENGTH, field], [field, LENGTH]):
        for kind in (AnswerWriter, wsgi.Response):
            writer = kind(Request("GET", (1, 1)), Sent(), Config())
            with pytest.raises((InvalidResponseHeader, InvalidResponseHeaderName)) as error:
                writer.start_response("200 OK", fields)
            assert not writer.headers_sent
            assert kind is wsgi.Response or str(error.value).endswith(": a field of the answer")


def test_an_answer_has_the_date_of_its_second(monkeypatch):
    """002-R16"""
    dates = []
    for now in (0.0, 0.9, 1.0, 86400.5):
        monkeypatch.setattr("time.time", lambda now=now: now)
        sent = Sent()
        AnswerWriter(Request("GET", (1, 1)), sent, Config()).start_response("200 OK", [])(b"x")
        dates.append(sent.data.split(b"Date: ")[1][:29].decode())
    assert dates == ["Thu, 01 Jan 1970 00:00:00 GMT"] * 2 + [
        "Thu, 01 Jan 1970 00:00:01 GMT", "Fri, 02 Jan 1970 00:00:00 GMT"]


@pytest.fixture
def serve(request):
    """Return what lets an app answer one request; it returns (what the client got, worker)."""
    def serve(app, asked=b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ends=None, keepalive=75,
              **of_worker):
        settings = Config()
        settings.set("keepalive", keepalive)
        worker = RouterWorker(0, os.getppid(), [], None, 1, settings, logging.getLogger())
        request.addfinalizer(worker.tmp.close)
        worker.wsgi = app
        vars(worker).update(of_worker)
        ours, theirs = gevent.socket.socketpair()
        watch = HangUpWatch()
        request.addfinalizer(watch.close)
        with theirs:
            theirs.sendall(asked)
            client = ClientSocket(ours, watch, Patience(1, 1, 9000, 9000), health_only=False)
            with client:
                asked = next(get_parser(settings, client, OURS))
                client.begin_request(asked, False, False)
                if ends is None:
                    worker._answer(OURS, asked, client, OURS)
                else:
                    with pytest.raises(ends):
                        worker._answer(OURS, asked, client, OURS)
            return theirs.recv(65536), worker
    return serve


def test_an_answer_is_written_and_closed(serve):
    """002-R16"""
    app = Pieces([b"ab", b"cde"], fields=[LENGTH])
    got, _ = serve(app)
    assert got.endswith(b"\r\n\r\nabcde") and b"Connection: keep-alive\r\n" in got
    assert app.closed == 1


def test_a_router_without_keep_alive_ends_each_connection(serve):
    """001-R4"""
    got, worker = serve(Pieces([b"abcde"], fields=[LENGTH]), ends=StopIteration, keepalive=0)
    assert b"Connection: close\r\n" in got and worker.alive


def test_the_last_request_of_a_worker_ends_its_connection(serve):
    """001-R1: --max-requests."""
    got, worker = serve(Pieces([b"abcde"], fields=[LENGTH]), ends=StopIteration, max_requests=1)
    assert got.endswith(b"abcde") and b"Connection: close\r\n" in got
    assert not worker.alive
    got, worker = serve(Pieces([b"abcde"], fields=[LENGTH]), max_requests=2)
    assert b"Connection: keep-alive\r\n" in got and worker.alive


def test_a_connection_ends_where_its_client_wants_it(serve):
    """002-R1"""
    got, _ = serve(Pieces([b"abcde"], fields=[LENGTH]), ends=StopIteration,
                   asked=b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"Connection: close\r\n" in got


@pytest.mark.parametrize("defect", [KeyError("secret"), SystemExit(1)])
def test_a_defect_behind_the_head_cuts_the_answer(serve, defect, caplog):
    """006-W23: nothing of the exception but its name is told, to the log."""
    app = Pieces([b"ab"], defect)
    got, _ = serve(app, ends=StreamCut)
    assert got.endswith(b"2\r\nab\r\n") and app.closed == 1
    assert [each.error for each in caplog.records] == [type(defect).__name__]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("end", [StreamCut(), ClientGone(), BrokenPipeError()])
def test_an_end_that_is_no_defect_goes_on_to_who_knows_it(serve, end, caplog):
    """006-W1, W4"""
    app = Pieces([b"ab"], end)
    got, _ = serve(app, ends=type(end))
    assert got.endswith(b"2\r\nab\r\n") and app.closed == 1 and not caplog.records


def test_a_defect_before_the_head_can_still_be_answered(serve):
    """002-R21"""
    app = Pieces([], KeyError("secret"))
    got, _ = serve(app, ends=KeyError)
    assert got == b"" and app.closed == 1


def test_a_head_that_breaks_off_is_a_head_that_was_sent(serve, monkeypatch):
    """006-W4: no second answer may follow a part of the first."""
    def broken(sock, data, flags=0):
        raise SystemExit(1)
    monkeypatch.setattr(ClientSocket, "sendall", broken)
    app = Pieces([b"ab"])
    got, _ = serve(app, ends=StreamCut)
    assert got == b"" and app.closed == 1

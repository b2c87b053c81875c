"""The application in process, with a plain object for a transport."""

import itertools
import json
import logging
import math
import types

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidResponseHeader
from werkzeug.test import EnvironBuilder

from app import metrics
from app.answer_writer import AnswerWriter
from app.config import load_config
from app.errors import ApiError, ClientGone, StreamCut
from app.factory import create_app
from app.routing.failover_limits import Limits
from app.routing.outcomes import Blame, Failure, UpstreamFailed
from app.upstream.failover import Attempts, Prepared
from app.worker import RouterLogger

OK = {"status": 200, "chunks": (b"first", b"second")}


class Answer:
    """What a transport returns: a response that never saw a socket."""

    def __init__(self, status=200, chunks=(), fields=(), first_error=None, body=b""):
        self.status, self.reason, self.fields, self.resent = status, "Faked", fields, False
        self.body, self.first_error, self.closed = body, first_error, 0
        self.chunks, self.has_begun = iter(chunks), True

    def first_chunk(self, timeout_s):
        if self.first_error is not None:
            raise self.first_error
        return next(self.chunks)

    def peek(self, max_bytes):
        return self.body

    def close(self):
        self.closed += 1


class Transport:
    """Answers by model; remembers what was sent."""

    def __init__(self, **answers):
        self.answers, self.sent = answers, []

    def __call__(self, path, body, headers, header_timeout_s):
        model = json.loads(b"".join(body))["model"]
        self.sent.append((model, path, header_timeout_s))
        answer = self.answers[model]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def prepared(came_at=math.inf, body_bytes=9):
    """Return a request that names a model and nothing else; it has just come."""
    return Prepared("/x", lambda model: (json.dumps({"model": model}).encode(),), {}, 1.0,
                    came_at=came_at, body_bytes=body_bytes, chosen_here=True)


def watching(told):
    """Return an observer that puts what it is told into a list."""
    return types.SimpleNamespace(attempted=told.append)


@pytest.fixture
def client_for():
    routers = []

    def build(transport):
        app = create_app(load_config(), send=transport)
        routers.append(app.extensions["router"])
        return app.test_client()
    yield build
    for router in routers:
        router.stop()


def post(client, model, **body):
    return client.post("/v1/chat/completions", json={"model": model, **body})


def test_the_answer_is_closed_when_it_has_been_read(client_for):
    """002-R15"""
    answer = Answer(**OK)
    response = post(client_for(Transport(a=answer)), "a")
    assert (response.status_code, response.data) == (200, b"firstsecond")
    response.close()
    assert answer.closed


def test_an_abandoned_answer_is_closed_before_the_next_attempt(client_for):
    """002-R13"""
    abandoned = Answer(status=503)

    class Checking(Transport):
        def __call__(self, path, body, headers, header_timeout_s):
            if json.loads(b"".join(body))["model"] == "b":
                assert abandoned.closed
            return super().__call__(path, body, headers, header_timeout_s)

    assert post(client_for(Checking(a=abandoned, b=Answer(**OK))), "a,b").data == b"firstsecond"


def test_an_answer_that_cannot_be_passed_on_is_let_go(client_for, caplog):
    """006-W5, 002-R16, 002-R21: the server refuses the head, and answers by itself."""
    answer, path = Answer(**OK, fields=[("X-Split", "a\r\nb: c")]), "/v1/chat/completions"
    environ = EnvironBuilder(path, method="POST", json={"model": "a"}).get_environ()
    request = types.SimpleNamespace(method="POST", version=(1, 1), should_close=lambda: False)
    writer = AnswerWriter(request, None, Config())
    caplog.set_level(logging.INFO)
    with pytest.raises(InvalidResponseHeader):
        client_for(Transport(a=answer)).application(environ, writer.start_response)
    assert answer.closed and not writer.headers_sent
    (line,) = [line for line in caplog.records if line.message == "request"]
    assert (line.status, line.ended) == (500, "internal_error")


@pytest.mark.parametrize("stream, seconds", [(True, 10), (False, 600), (None, 600), ("true", 600)])
def test_the_header_deadline_depends_on_stream(client_for, stream, seconds):
    """002-R13"""
    transport = Transport(a=Answer(**OK))
    post(client_for(transport), "a", **({} if stream is None else {"stream": stream}))
    assert transport.sent == [("a", "/v1/chat/completions", pytest.approx(seconds, abs=0.05))]


def test_a_client_that_leaves_ends_the_attempts_and_nobody_is_blamed():
    """006-W1, 005-R5"""
    told, answer = [], Answer(first_error=ClientGone())
    attempts = Attempts(Transport(a=answer, b=Answer(**OK)), 1.0, Limits())
    with pytest.raises(ClientGone):
        attempts.run(("a", "b"), prepared(), [watching(told)])
    assert answer.closed
    assert [(a.model, a.outcome, a.failure, a.blame) for a in told] == [
        ("a", "abandoned", None, Blame.NOBODY)]


def test_all_attempts_are_told_with_their_outcome():
    """001-R8, 002-R12"""
    told = []
    failed = UpstreamFailed(Failure.HEADER_TIMEOUT, "no headers")
    attempts = Attempts(Transport(a=failed, b=failed), 1.0, Limits(),
                        clock=itertools.count().__next__)
    with pytest.raises(ApiError) as caught:
        attempts.run(("a", "b"), prepared(), [watching(told)])
    assert (caught.value.status, caught.value.code) == (504, "upstream_header_timeout")
    assert [(a.model, a.outcome, a.blame, a.status, a.duration_ms) for a in told] == [
        ("a", "upstream_header_timeout", Blame.MODEL, None, 1000),
        ("b", "upstream_header_timeout", Blame.MODEL, None, 1000)]


def test_a_defect_is_a_500_that_quotes_nothing_and_a_line_without_the_exceptions_text(
        client_for, caplog):
    """002-R21, 001-R7, 001-R13"""
    counted = metrics.internal_errors_total._value.get()
    with caplog.at_level(logging.INFO):
        response = post(client_for(Transport(a=RuntimeError("sk-planted"))), "a")
    metrics.write_counts()
    assert metrics.internal_errors_total._value.get() == counted + 1
    assert response.status_code == 500
    assert response.json["error"]["code"] == "internal_error"
    assert "sk-planted" not in response.text + caplog.text
    [told] = [r for r in caplog.records if r.message == "request"]
    assert (told.status, told.ended) == (500, "internal_error")
    [line] = [r for r in caplog.records if r.message == "internal error"]
    assert line.error == "RuntimeError" and any("failover.py" in place for place in line.where)


def test_a_defect_after_the_commit_is_told_as_one_and_cuts_the_client(client_for, caplog):
    """006-W23, 001-R7: not as a client that left."""
    def breaks():
        yield b"first"
        raise RuntimeError("sk-planted")

    answer, counted = Answer(chunks=breaks()), metrics.internal_errors_total._value.get()
    with caplog.at_level(logging.INFO):
        response = post(client_for(Transport(a=answer)), "a")
        with pytest.raises(StreamCut):
            assert response.data
        response.close()
    metrics.write_counts()
    assert metrics.internal_errors_total._value.get() == counted + 1 and answer.closed
    [told] = [r for r in caplog.records if r.message == "request"]
    assert (told.status, told.bytes, told.ended) == (200, 5, "internal_error")
    [line] = [r for r in caplog.records if r.message == "internal error"]
    assert line.error == "RuntimeError" and any("breaks" in place for place in line.where)
    assert "sk-planted" not in caplog.text


def test_gunicorn_logs_no_exceptions_text(caplog):
    """001-R7, 006-W23: whatever it meets after the commit."""
    logger = RouterLogger(Config())
    with caplog.at_level(logging.INFO):
        try:
            raise RuntimeError("sk-planted")
        except RuntimeError:
            logger.exception("Error handling %s", "sk-planted")
    [line] = caplog.records
    assert line.error == "RuntimeError" and "sk-planted" not in caplog.text

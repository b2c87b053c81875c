"""Streams, whole ones and broken ones, as clients in wide use see them."""

import gzip
import json

import pytest

from tests.clients.test_answers import ARGUMENTS, WEATHER
from tests.support.upstream import chat_chunks, complete, pieces, sse

TEXT = "The answer is forty-two."
STREAM = [("Content-Type", "text/event-stream")]
ERROR = b'{"detail": "The instance went away."}'


def events(name):
    """Return the parts of a whole stream."""
    return sse(chat_chunks(name, TEXT))


def break_off(name):
    """Send half a stream, then reset."""
    def script(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"), *STREAM)
        exchange.chunk(events(name)[1])
        exchange.reset()
    return script


def usage(name):
    """Return an event that has no choices."""
    [event, *_] = chat_chunks(name, "")
    return {**event, "choices": [], "usage": {
        "prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}}


def test_a_streamed_answer_arrives_word_by_word(client, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, pieces(events(name), fields=STREAM))
    seen = client("stream", f"{name},{model()}")
    assert seen["text"].strip() == TEXT and seen.get("pieces", 4) == 4


@pytest.mark.parametrize("client", ["openai_python"], indirect=True)
def test_the_asynchronous_client(client, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, pieces(events(name), fields=STREAM))
    assert client("stream_async", name)["text"].strip() == TEXT


@pytest.mark.parametrize("client", ["openai_python", "openai_node", "langchain", "ai_sdk"],
                         indirect=True)
def test_a_tools_call_that_is_streamed(client, upstream, model):
    """002-R15"""
    name = model()
    [first, *_, last] = chat_chunks(name, "")
    calls = []
    for more in ({"id": "call-1", "type": "function",
                  "function": {"name": "weather", "arguments": ""}},
                 *({"function": {"arguments": letter}} for letter in ARGUMENTS)):
        calls.append({**first, "choices": [{"index": 0, "finish_reason": None, "delta": {
            "tool_calls": [{"index": 0, **more}]}}]})
    last["choices"][0]["finish_reason"] = "tool_calls"
    upstream.on(name, pieces(sse([first, *calls, last]), fields=STREAM))
    [[called, arguments]] = client("stream", name, tools=[WEATHER])["tools"]
    assert (called, json.loads(arguments)) == ("weather", json.loads(ARGUMENTS))


@pytest.mark.parametrize("script", [
    pytest.param(break_off, id="a_reset"),
    pytest.param(lambda name: pieces([events(name)[1], ERROR], fields=STREAM),
                 id="an_error_as_bare_json"),
    pytest.param(lambda name: pieces(events(name)[:3], fields=STREAM), id="no_done"),
])
def test_half_an_answer_raises(client, upstream, model, script):
    """006-W4, 006-W14"""
    name = model()
    upstream.on(name, script(name))
    seen = client("stream", name)
    # The status shows that the error came within the stream, and not in its place.
    assert "raised" in seen and seen["status"] in (None, 200)
    assert len(upstream.seen(name)) == 1


@pytest.mark.parametrize("script", [
    pytest.param(lambda name: pieces([*events(name), *sse([usage(name)], done=False)],
                                     fields=STREAM), id="an_event_behind_done"),
    pytest.param(lambda name: pieces([*events(name)[:-1], b"data: [DO", b"NE]\n", b"\n"],
                                     fields=STREAM), id="done_split"),
    pytest.param(lambda name: pieces([*events(name)[:-1], b"data: [DONE]"], fields=STREAM),
                 id="no_line_end_after_done"),
    pytest.param(lambda name: complete(b"".join(events(name)), fields=STREAM), id="one_piece"),
    pytest.param(lambda name: complete(
        gzip.compress(b"".join(events(name))), "chunked",
        fields=[*STREAM, ("Content-Encoding", "gzip")]), id="gzip"),
])
def test_a_whole_stream_of_an_odd_form_is_whole(client, upstream, model, script):
    """002-R15, 006-W14"""
    name = model()
    upstream.on(name, script(name))
    seen = client("stream", name)
    assert "raised" not in seen and seen["text"].strip() == TEXT
    assert dict(upstream.seen(name)[0].fields)["accept-encoding"] == "identity"

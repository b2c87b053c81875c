"""Answers, tools, images and the router's own errors, as clients in wide use see them."""

import base64
import json
import random

import pytest

from tests.support.upstream import chat_completion, complete, reset_at_once

TEXT = "The answer is forty-two."
JSON = [("Content-Type", "application/json")]
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Tell the weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
ARGUMENTS = '{"city":"Zürich"}'


def test_an_answer_that_is_not_streamed(client, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, complete(chat_completion(name, TEXT), fields=JSON))
    assert client("chat", f"{name},{model()}")["text"].strip() == TEXT
    [exchange] = upstream.seen(name)
    assert dict(exchange.fields)["authorization"] == "Bearer sk-mine"


@pytest.mark.parametrize("client", ["openai_python", "openai_node", "langchain", "ai_sdk"],
                         indirect=True)
def test_tools_go_up_and_their_calls_come_down(client, upstream, model):
    """002-R8, 002-R15"""
    name = model()
    answer = json.loads(chat_completion(name, None))
    answer["choices"][0] |= {"finish_reason": "tool_calls", "message": {
        "role": "assistant", "content": None, "tool_calls": [{
            "id": "call-1", "type": "function",
            "function": {"name": "weather", "arguments": ARGUMENTS}}]}}
    upstream.on(name, complete(json.dumps(answer).encode(), fields=JSON))
    [[called, arguments]] = client("chat", name, tools=[WEATHER])["tools"]
    assert (called, json.loads(arguments)) == ("weather", json.loads(ARGUMENTS))
    [tool] = json.loads(upstream.seen(name)[0].body)["tools"]
    assert tool["function"]["parameters"]["properties"] == {"city": {"type": "string"}}


def test_an_image_arrives_byte_for_byte(client, upstream, model):
    """002-R8"""
    name = model()
    image = b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(300_000)
    upstream.on(name, complete(chat_completion(name, TEXT), fields=JSON))
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    assert client("chat", f"{name},{model()}", image=url)["text"].strip() == TEXT
    [message] = json.loads(upstream.seen(name)[0].body)["messages"]
    [part] = [part for part in message["content"] if part["type"] == "image_url"]
    sent = part["image_url"]["url"]
    assert sent.startswith("data:image/png;base64,")
    assert base64.b64decode(sent.partition(",")[2]) == image


OFFICIAL = ("openai_python", "openai_node")


def shows(seen, name, error):
    """Say whether what a client called `name` has seen shows an error object."""
    members = all(seen[key] == error[key] for key in ("type", "code", "param"))
    return error["message"] in seen["shown"] and (members or name not in OFFICIAL)


@pytest.mark.parametrize("asked", ["nobody/knows", ",", " "])
def test_the_routers_refusals_are_shown(client, router, asked):
    """002-R21"""
    error = router.chat(asked, stream=False).error
    assert shows(client("chat", asked), client.name, error)


@pytest.mark.parametrize("way", ["chat", "stream"])
def test_an_upstreams_failure_is_shown(client, router, upstream, model, way):
    """002-R12, 002-R21"""
    name = model()
    upstream.on(name, reset_at_once)
    error = router.chat(name).error
    assert error["code"] == "upstream_connect_error"
    assert shows(client(way, name), client.name, error)


def test_a_client_does_not_repeat_what_was_refused(client, upstream, model):
    """002-R12"""
    name = model()
    upstream.on(name, complete(b'{"detail":"Too long."}', status=400, fields=JSON))
    assert "raised" in client("chat", name, retries=2)
    assert len(upstream.seen(name)) == 1

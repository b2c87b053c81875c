"""The official OpenAI client against the running router."""

import asyncio
import json

import openai
import pytest

from tests.support.upstream import (chat_chunks, chat_completion, complete, pieces, reset_at_once,
                                    sse)

QUESTION = [{"role": "user", "content": "What is the answer?"}]
TEXT = "The answer is forty-two."


@pytest.fixture
def sdk(router):
    with openai.OpenAI(api_key="sk-mine", base_url=f"http://127.0.0.1:{router.port}/v1",
                       max_retries=0) as client:
        yield client


def test_a_streamed_answer_arrives_word_by_word(sdk, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, pieces(sse(chat_chunks(name, TEXT)),
                             fields=[("Content-Type", "text/event-stream")]))
    with sdk.chat.completions.create(model=name, messages=QUESTION, stream=True) as stream:
        words = [event.choices[0].delta.content or "" for event in stream]
    assert "".join(words).strip() == TEXT and len(words) > 4
    assert dict(upstream.seen(name)[0].fields)["authorization"] == "Bearer sk-mine"


def test_an_answer_that_is_not_streamed(sdk, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, complete(chat_completion(name, TEXT),
                               fields=[("Content-Type", "application/json")]))
    answer = sdk.chat.completions.create(model=f"{name},{model()}", messages=QUESTION)
    assert answer.choices[0].message.content == TEXT


def test_the_asynchronous_client(router, upstream, model):
    """002-R15"""
    name = model()
    upstream.on(name, pieces(sse(chat_chunks(name, TEXT)),
                             fields=[("Content-Type", "text/event-stream")]))

    async def ask():
        async with openai.AsyncOpenAI(
                api_key="sk-mine", base_url=f"http://127.0.0.1:{router.port}/v1") as client:
            stream = await client.chat.completions.create(
                model=name, messages=QUESTION, stream=True)
            return [event.choices[0].delta.content or "" async for event in stream]

    assert "".join(asyncio.run(ask())).strip() == TEXT


@pytest.mark.parametrize("asked, error, code, param", [
    ("nobody/knows", openai.BadRequestError, "unknown_model", "model"),
    (",", openai.BadRequestError, "invalid_model_list", "model"),
    (" ", openai.BadRequestError, "missing_model", "model"),
])
def test_our_refusals_are_the_sdks_exceptions(sdk, asked, error, code, param):
    """002-R21"""
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(model=asked, messages=QUESTION)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"


def test_an_upstream_failure_is_the_sdks_server_error(sdk, upstream, model):
    """002-R21"""
    name = model()
    upstream.on(name, reset_at_once)
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model=name, messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_connect_error")


def test_the_upstreams_own_errors_arrive_as_they_are(sdk, upstream, model):
    """002-R12"""
    name = model()
    detail = {"detail": "Infrastructure is at maximum capacity, try again later"}
    upstream.on(name, complete(json.dumps(detail).encode(), status=429,
                               fields=[("Content-Type", "application/json")]))
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.chat.completions.create(model=name, messages=QUESTION)
    assert caught.value.response.json() == detail
    upstream.on(name, complete(b'{"detail":"Invalid token."}', status=401))
    with pytest.raises(openai.AuthenticationError):
        sdk.chat.completions.create(model=name, messages=QUESTION)


def test_a_stream_that_breaks_off_raises_in_the_sdk(sdk, upstream, model):
    """006-W4"""
    name = model()

    def break_off(exchange):
        exchange.head(200, ("Transfer-Encoding", "chunked"),
                      ("Content-Type", "text/event-stream"))
        exchange.chunk(sse(chat_chunks(name, TEXT))[0])
        exchange.close()

    upstream.on(name, break_off)
    with pytest.raises(openai.APIConnectionError):
        for _ in sdk.chat.completions.create(model=name, messages=QUESTION, stream=True):
            pass

"""OpenAI's client for Python: `openai_python.py BASE_URL`."""

import asyncio
import sys

import openai

from tests.clients.programs.answering import answer, messages

base_url = sys.argv[1]
client = openai.OpenAI(base_url=base_url, api_key="sk-mine")


def request(model, question, image=None, tools=None):
    """Return the arguments of a chat completion."""
    return {"model": model, "messages": messages(question, image),
            **({"tools": tools} if tools else {})}


def chat(retries=0, **asked):
    """Ask, and wait for the whole answer."""
    answered = client.with_options(max_retries=retries).chat.completions.create(**request(**asked))
    said = answered.choices[0].message
    return {"text": said.content, "tools": [[call.function.name, call.function.arguments]
                                            for call in said.tool_calls or []]}


def collected(events):
    """Return what a stream's events say together."""
    deltas = [choice.delta for event in events for choice in event.choices]
    pieces = [delta.content for delta in deltas if delta.content]
    calls = [call.function for delta in deltas for call in delta.tool_calls or []]
    name = "".join(call.name or "" for call in calls)
    arguments = "".join(call.arguments or "" for call in calls)
    return {"text": "".join(pieces), "pieces": len(pieces),
            "tools": [[name, arguments]] if calls else []}


def stream(**asked):
    """Ask, and take the answer as it comes."""
    return collected(client.with_options(max_retries=0).chat.completions.create(
        **request(**asked), stream=True))


def stream_async(**asked):
    """Ask, and take the answer as it comes, by the asynchronous client."""
    async def ask():
        async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-mine") as client:
            events = await client.chat.completions.create(**request(**asked), stream=True)
            return collected([event async for event in events])
    return asyncio.run(ask())


def complete(model, question):
    """Have a text completed, by the older route, as it comes."""
    events = client.completions.create(model=model, prompt=question, stream=True)
    return {"text": "".join(event.choices[0].text for event in events)}


def models(**_):
    """List the models."""
    return {"models": [model.to_dict() for model in client.models.list()]}


def one_model(model, **_):
    """Look one model up."""
    return client.models.retrieve(model).to_dict()


answer(chat=chat, stream=stream, stream_async=stream_async, complete=complete, models=models,
       one_model=one_model)

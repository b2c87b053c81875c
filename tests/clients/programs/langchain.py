"""LangChain: `langchain.py BASE_URL`."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAI

from tests.clients.programs.answering import answer, messages


def asking(model, tools, retries):
    """Return LangChain's chat model for `model`."""
    chat_model = ChatOpenAI(
        base_url=sys.argv[1], api_key="sk-mine", model=model, max_retries=retries)
    return chat_model.bind_tools(tools) if tools else chat_model


def seen(message, pieces):
    """Return what a message says."""
    return {"text": message.text, "pieces": pieces,
            "tools": [[call["name"], json.dumps(call["args"])] for call in message.tool_calls]}


def chat(model, question, image=None, tools=None, retries=0):
    """Ask, and wait for the whole answer."""
    return seen(asking(model, tools, retries).invoke(messages(question, image)), 1)


def stream(model, question, tools=None):
    """Ask, and take the answer as it comes."""
    pieces = list(asking(model, tools, 0).stream(messages(question)))
    return seen(sum(pieces[1:], pieces[0]), len([piece for piece in pieces if piece.text]))


def complete(model, question):
    """Have a text completed, by the older route, as it comes."""
    asked = OpenAI(base_url=sys.argv[1], api_key="sk-mine", model=model, max_retries=0)
    return {"text": "".join(asked.stream(question))}


answer(chat=chat, stream=stream, complete=complete)

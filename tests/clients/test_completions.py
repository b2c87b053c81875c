"""Completions of a text, by the older route, as clients in wide use see them."""

import json

from tests.support.upstream import pieces, sse

WORDS = ["The ", "answer ", "is ", "forty-two."]


def test_a_text_is_completed_word_by_word(client, upstream, model):
    """002-R8, 002-R15"""
    name = model()
    events = [{"id": "cmpl-scripted", "object": "text_completion", "created": 1, "model": name,
               "choices": [{"index": 0, "text": word, "logprobs": None,
                            "finish_reason": "stop" if word == WORDS[-1] else None}]}
              for word in WORDS]
    upstream.on(name, pieces(sse(events), fields=[("Content-Type", "text/event-stream")]))
    assert client("complete", f"{name},{model()}")["text"].strip() == "".join(WORDS)
    [exchange] = upstream.seen(name)
    assert exchange.target == "/v1/completions"
    assert "What is the answer?" in json.loads(exchange.body)["prompt"]

"""What an answer says of the tokens it has used."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.usage import CachedTokens, Usage, read_usage

SAID = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46,
        "prompt_tokens_details": {"cached_tokens": 5}}


@given(before=st.binary(max_size=300).filter(lambda data: b'"usage"' not in data),
       spaced=st.booleans())
def test_the_tokens_are_those_of_the_usage_object_whatever_stands_before(before, spaced):
    """008-R6"""
    said = json.dumps({"id": "x", "usage": SAID}, indent=1 if spaced else None).encode()
    expected = Usage(12, 34, CachedTokens(5))
    assert read_usage(before + b" " + said + b"\n\ndata: [DONE]\n\n") == expected


def test_the_last_object_counts_and_null_is_none():
    """008-R6"""
    first, last = ({"usage": {"prompt_tokens": count}} for count in (1, 2))
    for after in (b"", b'{"usage":null}', b'{"usage": "none"}', b'"usage"'):
        assert read_usage(json.dumps([first, last]).encode() + after) == Usage(2)


def test_a_usage_within_a_text_is_none():
    """008-R6"""
    text = json.dumps({"content": json.dumps({"usage": SAID})}).encode()
    assert read_usage(text) is None


@pytest.mark.parametrize("said", [
    b"", b'"usage"', b'"usage":', b'"usage":{', b'"usage":null', b'"usage":[]',
    b'"usage":{"prompt_tokens":"12"}', b'"usage":{"prompt_tokens":-1}', b'"usage":{"x":}',
    b'"usage":{"prompt_tokens":1e400}', b'"usage":{"prompt_tokens":1.5}',
    b'"usage":{"prompt_tokens":%s}' % (b"9" * 3000), b'"usage":' + b"{" * 4000,
    b'"usage":{"prompt_tokens_details":5}', b'"usage":{' * 400])
def test_what_is_no_usage_object_says_nothing(said):
    """008-R6"""
    assert read_usage(said) is None


@pytest.mark.parametrize("said", [b"{}", b'{"prompt_tokens":null}', b'{"other":[1]}',
                                  b'{"prompt_tokens_details":null}'])
def test_an_object_without_the_numbers_says_none_of_them(said):
    """008-R6"""
    assert read_usage(b'"usage":' + said) == Usage()

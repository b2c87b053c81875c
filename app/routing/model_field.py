"""Find the top-level `model` of a JSON body, and replace its value and nothing else.

The body is never decoded as a whole and never encoded again. msgspec checks the syntax and picks
out a few members without building objects for the rest: a body of 1 MiB costs 1 to 3 ms, at worst
25. The place of `model` is then found in the bytes. Three gaps of msgspec are closed here. It does
not check UTF-8 in what it skips. It refuses lone surrogate escapes, which are JSON. It takes the
last of two equal keys without an error.

Source: specs/002 R2, R8, R9; RFC 8259.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from app.errors import ApiError
from app.routing.surrogates import without_lone_surrogates

# Stands for a member that is not there.
UNSET = msgspec.Raw(b"")


class Members(msgspec.Struct):
    """Members of a body as they stand in it, found in the pass that checks its syntax."""

    model: msgspec.Raw = UNSET
    stream: msgspec.Raw = UNSET
    prompt_cache_key: msgspec.Raw = UNSET
    messages: msgspec.Raw = UNSET
    prompt: msgspec.Raw = UNSET
    tools: msgspec.Raw = UNSET
    functions: msgspec.Raw = UNSET
    response_format: msgspec.Raw = UNSET
    max_completion_tokens: msgspec.Raw = UNSET
    max_tokens: msgspec.Raw = UNSET


_members = msgspec.json.Decoder(Members)
_anything = msgspec.json.Decoder(msgspec.Raw)
_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw])

# Within valid JSON a match is a key unless a backslash stands before it: an unescaped quote
# can only open or close a string, and this one is followed by "model" and, outside, a colon.
_KEY = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*')
# The same key with some of its letters spelled as escapes; `_LETTER_ESCAPE` says whether it is
# worth looking for.
_SPELLED_KEY = re.compile(
    rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
    rb'[ \t\n\r]*:[ \t\n\r]*')
_LETTER_ESCAPE = re.compile(rb"\\u006[45cCdDfF]")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BACKSLASH = ord("\\")
# A string up to where it ends, or where an escape is cut.
_BEGINNING = re.compile(rb'"(?:[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*', re.DOTALL)
# 512 bytes of the value are enough (005-R14). An escape takes at most 6 bytes for each byte that it
# stands for. The last one may be cut, and is 12 bytes long if it is a pair.
_KEY_BYTES = 1 + 6 * 512 + 12
# To tell which of so many keys is the top-level one would hold the event loop for too long.
_MOST_KEYS = 1000
# Eight names of the length a header may have, escaped; a longer value names no model.
_LONGEST_VALUE = 16 * 1024

# What is sent one after the other.
Pieces = tuple[bytes | memoryview, ...]

_Document = TypeVar("_Document")


@dataclasses.dataclass(frozen=True)
class ModelField:
    """The `model` of one body and where its value stands.

    body     the client's bytes
    model    the decoded value: not blank, no lone surrogate
    start    offset of the value's opening quote
    end      offset just behind its closing quote
    stream   whether the body says "stream": true
    members  of the body; where lone surrogate escapes are in it, other digits stand in them
    key      how `prompt_cache_key` begins, as JSON text
    """

    body: bytes = dataclasses.field(repr=False)
    model: str
    start: int
    end: int
    stream: bool
    members: Members = dataclasses.field(repr=False)
    key: bytes = dataclasses.field(repr=False)

    @property
    def prompt_cache_key(self) -> str:
        """Return how the body's `prompt_cache_key` begins: 512 bytes of UTF-8 and more, or all.

        It is empty where that is no string. A lone surrogate escape in it gives U+FFFD.
        """
        begun = _BEGINNING.match(self.key)
        if begun is None:
            return ""
        # The cut may be within a character.
        text = begun[0].decode(errors="ignore")
        if "\\" not in text:
            return text[1:]
        return str(json.loads(without_lone_surrogates(text.encode()) + b'"'))

    def body_for(self, model: str) -> Pieces:
        """Return the body with `model` as the value; other bytes stay as they are, uncopied."""
        if model == self.model:
            return (self.body,)
        whole = memoryview(self.body)
        return whole[:self.start], json.dumps(model).encode(), whole[self.end:]


def find_model(body: bytes, pause: Callable[[], None] = lambda: None) -> ModelField:
    """Find the top-level `model` of a request body.

    body     the client's bytes, of any length
    pause    called after each pass over the body
    Returns  ModelField
    Raises   ApiError: invalid_json, invalid_body (no object, or `model` twice), missing_model
    Cost     about 1 ms for 1 MiB, no I/O

    Source: specs/002 R2, R8, R9, specs/006 W26.
    """
    members, syntax = _parse(body, pause)
    pause()
    if members.model is UNSET:
        raise ApiError("missing_model", "The body has no \"model\".")
    start = _value_offset(syntax)
    match = _STRING.match(body, start)
    if match is None:
        raise ApiError("missing_model", "The \"model\" is not a string.")
    if len(match[0]) > _LONGEST_VALUE:
        raise ApiError("missing_model", "The \"model\" is too long to be a name.")
    return ModelField(body, _model_name(match[0]), start, match.end(),
                      bytes(members.stream) == b"true", members,
                      _key(members, body, syntax, pause))


def _key(members: Members, body: bytes, syntax: bytes, pause: Callable[[], None]) -> bytes:
    """Return how the prompt_cache_key begins, as the client wrote it."""
    key = bytes(memoryview(members.prompt_cache_key)[:_KEY_BYTES])
    if syntax is body or rb"\u1" not in key:
        return key
    pause()
    # Two layouts of the same body differ where something was replaced, and say what it was.
    other = memoryview(_members.decode(_neutral(body, b"2", b"3")).prompt_cache_key)[:_KEY_BYTES]
    return bytes([{ord("2"): ord("d"), ord("3"): ord("D")}[there] if here != there else here
                  for here, there in zip(key, other)])


def _parse(body: bytes, pause: Callable[[], None]) -> tuple[Members, bytes]:
    """Return the members of interest, and bytes of the same layout that msgspec accepts."""
    try:
        str(body, "utf-8")
        pause()
        try:
            return _decode(_members, body, pause)
        except msgspec.ValidationError:
            # Said at the first byte: whether the rest is JSON at all is still open.
            _decode(_anything, body, pause)
            raise
    except UnicodeDecodeError:
        raise ApiError("invalid_json", "The body is not UTF-8.") from None
    except msgspec.ValidationError:
        raise ApiError("invalid_body", "The body must be a JSON object.") from None
    except RecursionError:
        raise ApiError("invalid_json", "The body is nested too deeply.") from None
    except msgspec.DecodeError:
        raise ApiError("invalid_json", "The body is not valid JSON.") from None


def _decode(decoder: "msgspec.json.Decoder[_Document]", body: bytes,
            pause: Callable[[], None]) -> tuple[_Document, bytes]:
    try:
        return decoder.decode(body), body
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        neutral = _neutral(body, b"1", b"1")
        if neutral == body:
            raise
        pause()
        return decoder.decode(neutral), neutral


def _neutral(body: bytes, for_d: bytes, for_upper_d: bytes) -> bytes:
    """Return a body of the same layout without surrogate escapes.

    Other hex digits do for the syntax; the length stays, and so do all offsets. None of these
    escapes, of \\u1000 to \\u3fff, spells a letter of a key.
    """
    return body.replace(rb"\ud", rb"\u" + for_d).replace(rb"\uD", rb"\u" + for_upper_d)


def _value_offset(body: bytes) -> int:
    pattern = _SPELLED_KEY if _LETTER_ESCAPE.search(body) else _KEY
    found = (match for match in pattern.finditer(body) if body[match.start() - 1] != _BACKSLASH)
    keys = list(itertools.islice(found, _MOST_KEYS + 1))
    if len(keys) > _MOST_KEYS:
        raise ApiError("invalid_body", f"The body has more than {_MOST_KEYS} keys named \"model\".")
    if len(keys) > 1:
        keys = _only_top_level(body, keys)
    if len(keys) > 1:
        raise ApiError("invalid_body", "The body names \"model\" more than once.")
    return keys[0].end()


def _only_top_level(body: bytes, keys: list[re.Match[bytes]]) -> list[re.Match[bytes]]:
    # Nested objects have keys of that name too. Each key found gets a name of its own, one
    # that no client can guess; those msgspec then sees at top level are the ones meant.
    nonce = os.urandom(8).hex()
    pieces, end = [], 0
    for number, key in enumerate(keys):
        pieces += [body[end:key.start()], f'"{nonce}{number}":'.encode()]
        end = key.end()
    names = _top_level.decode(b"".join([*pieces, body[end:]])).keys()
    return [key for number, key in enumerate(keys) if f"{nonce}{number}" in names]


def _model_name(value: bytes) -> str:
    model = json.loads(value) if b"\\" in value else value[1:-1].decode()
    if not model.strip():
        raise ApiError("missing_model", "The \"model\" is blank.")
    try:
        model.encode()
    except UnicodeEncodeError:
        raise ApiError("missing_model", "The \"model\" is not a string of characters.") from None
    return model

"""Reads from a body what its request needs.

What cannot be read of a body is no need: whether the body is valid is for the upstream to say.

Source: specs/003 R21.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from app.routing.model_field import UNSET, Members
from app.routing.needs import NO_NEEDS, Needs

# A context of at most so many tokens is no need: every model has it.
_LEAST_CONTEXT = 4096
# English text has about four bytes a token.
_BYTES_PER_TOKEN = 4
# Escapes are counted in so many samples of so many bytes, spread over a text, and taken to be as
# frequent in the rest. The lengths of escapes divide a sample.
_SAMPLES, _SAMPLE_BYTES = 8, 120
# What is looked at one by one: messages, their parts and tool calls together, or prompts. Each
# costs a microsecond. A body with more of them is judged by its bytes.
_MAX_ITEMS = 512

_LARGE_BYTES = 64 * 1024

_NOT_EMPTY = re.compile(rb"\[[ \t\n\r]*[^\] \t\n\r]")
_NUMBERS = re.compile(rb"\[[ \t\n\r]*[0-9]")
_ARRAY, _TEXT = re.compile(rb"\["), re.compile(rb'"')
_FORMATS = {"json_schema": "structured_outputs", "json_object": "json_mode"}
_INPUTS = {"image_url": "image", "video_url": "video", "input_audio": "audio"}


# Members stay as they stand in the body until one is looked at: a value of another kind builds
# nothing, however large it is, and costs nothing but itself.
class _Part(msgspec.Struct, frozen=True, gc=False):
    type: msgspec.Raw = UNSET
    text: msgspec.Raw = UNSET


class _Function(msgspec.Struct, frozen=True, gc=False):
    arguments: msgspec.Raw = UNSET


class _ToolCall(msgspec.Struct, frozen=True, gc=False):
    function: msgspec.Raw = UNSET


class _Message(msgspec.Struct, frozen=True, gc=False):
    content: msgspec.Raw = UNSET
    tool_calls: msgspec.Raw = UNSET


class _Format(msgspec.Struct, frozen=True, gc=False):
    type: msgspec.Raw = UNSET


def _array(most: int, kind: type, missing: object) -> "msgspec.json.Decoder[Any]":
    """Return the decoder of an array of at most `most` values; it skips what is beyond, unbuilt."""
    return msgspec.json.Decoder(msgspec.defstruct(
        "Array", [(f"item_{number}", kind, missing) for number in range(most)], array_like=True))


_NO_MESSAGE, _NO_PART, _NO_CALL, _NO_FUNCTION = _Message(), _Part(), _ToolCall(), _Function()
# Most arrays within a message have few items.
_few, _many = _array(9, msgspec.Raw, UNSET), _array(_MAX_ITEMS + 1, msgspec.Raw, UNSET)
# Where each message is an object, as it should be, they are found in one pass.
_objects = _array(_MAX_ITEMS + 1, _Message, _NO_MESSAGE)
_NONE = _many.decode(b"[]")
_message, _part = msgspec.json.Decoder(_Message), msgspec.json.Decoder(_Part)
_tool_call, _function = msgspec.json.Decoder(_ToolCall), msgspec.json.Decoder(_Function)
_format, _string = msgspec.json.Decoder(_Format), msgspec.json.Decoder(str)
_number = msgspec.json.Decoder(int | float)


class _TooMany(Exception):
    """There are more items than are looked at."""


class _Reading:
    """What has been found in a body so far, and how many more items are looked at."""

    def __init__(self, pause: Callable[[], None] = lambda: None) -> None:
        self.pause = pause
        self.inputs = set[str]()
        self.left = _MAX_ITEMS

    def items(self, array: msgspec.Raw) -> list[msgspec.Raw]:
        """Return the values of an array; none of another value. Raises _TooMany."""
        if not _ARRAY.match(array):
            return []
        # A pass over a large array takes long; one is enough.
        large = len(memoryview(array)) > _LARGE_BYTES
        for decoder, most in ((_few, 9), (_many, _MAX_ITEMS + 1))[large:]:
            found = [item for item in msgspec.structs.astuple(_decoded(decoder, array) or _NONE)
                     if item is not UNSET]
            if len(found) < most:
                break
        self.look_at(len(found))
        return found

    def look_at(self, count: int) -> None:
        """Take note that so many items are looked at. Raises _TooMany."""
        self.left -= count
        if self.left < 0:
            raise _TooMany

    def message(self, message: _Message) -> int:
        """Return the bytes of a message's text; add the kinds of its other parts to `inputs`."""
        size = _text_bytes(message.content)
        for item in self.items(message.content):
            part = _decoded(_part, item) or _NO_PART
            size += _text_bytes(part.text)
            kind = _INPUTS.get(_short_text(part.type))
            if kind is not None:
                self.inputs.add(kind)
        for item in self.items(message.tool_calls):
            call = _decoded(_tool_call, item) or _NO_CALL
            function = _decoded(_function, call.function) or _NO_FUNCTION
            size += _text_bytes(function.arguments)
        return size

    def messages(self, raw: msgspec.Raw) -> int:
        """Return the bytes of text in all messages."""
        try:
            objects = _decoded(_objects, raw)
            self.pause()
            if objects is None:
                found = [_decoded(_message, item) or _NO_MESSAGE for item in self.items(raw)]
            else:
                found = [message for message in msgspec.structs.astuple(objects)
                         if message is not _NO_MESSAGE]
                self.look_at(len(found))
            return sum(map(self.message, found))
        except _TooMany:
            self.pause()
            data = bytes(raw)
            # By a part that begins with no quote: a search for one stops at each.
            self.inputs.update(kind for name, kind in _INPUTS.items()
                               if name.encode() in data and b'"%s"' % name.encode() in data)
            # Without images and the like nearly all of it is text.
            return 0 if self.inputs else len(data)


def read_needs(members: Members, pause: Callable[[], None] = lambda: None) -> Needs:
    """Read what a request needs from the members of its body.

    members  as found with `model`; `messages` counts, or `prompt` where there are no messages
    pause    called between two passes over the messages
    Returns  Needs; NO_NEEDS for most requests
    Cost     at most some milliseconds for a body of 1 MiB, whatever it holds; no I/O

    Source: specs/003 R21, specs/006 W26.
    """
    reading, features = _Reading(pause), set[str]()
    if (members.tools is not UNSET and _NOT_EMPTY.match(members.tools)
            or members.functions is not UNSET and _NOT_EMPTY.match(members.functions)):
        features.add("tools")
    if members.response_format is not UNSET:
        wanted = _decoded(_format, members.response_format)
        feature = _FORMATS.get(_short_text(wanted.type)) if wanted is not None else None
        if feature is not None:
            features.add(feature)
    tokens = _answer_tokens(members)
    if members.messages is UNSET:
        tokens += _prompt_tokens(members.prompt)
    elif not _is_plain(members.messages, tokens):
        tokens += reading.messages(members.messages) // _BYTES_PER_TOKEN
    context = tokens if tokens > _LEAST_CONTEXT else 0
    if not features and not reading.inputs and not context:
        return NO_NEEDS
    return Needs(frozenset(features), frozenset(reading.inputs), context)


def _is_plain(messages: msgspec.Raw, tokens: int) -> bool:
    """Say whether messages are short and of text, as most are; `tokens` are needed beside them."""
    size = len(memoryview(messages))
    if tokens + size // _BYTES_PER_TOKEN > _LEAST_CONTEXT:
        return False
    data = bytes(messages)
    return b"_url" not in data and b"input_audio" not in data


def _short_text(value: msgspec.Raw) -> str:
    """Return the text of a short JSON string; empty for another value."""
    if len(memoryview(value)) > 100 or not _TEXT.match(value):
        return ""
    text: str = _decoded(_string, value) or ""
    return text


def _text_bytes(value: msgspec.Raw) -> int:
    """Return about how many bytes of UTF-8 a JSON string stands for; 0 for another value."""
    view = memoryview(value)
    if not _TEXT.match(view):
        return 0
    text = view[1:-1]
    size = len(text)
    if size <= _SAMPLES * _SAMPLE_BYTES:
        sample = bytes(text)
    else:
        step = size // _SAMPLES
        sample = b"".join(text[at:at + _SAMPLE_BYTES] for at in range(0, _SAMPLES * step, step))
    escapes = sample.count(b"\\")
    if escapes:
        # An escape is two bytes for one, also where it is of a backslash. One by number is six
        # bytes for three, or for two where it begins with 0.
        spared = (escapes - sample.count(b"\\\\") + 2 * sample.count(b"\\u")
                  + sample.count(b"\\u0"))
        size -= size * spared // len(sample)
    return size


def _prompt_tokens(prompt: msgspec.Raw) -> int:
    """Return the tokens of a prompt; of several prompts, each with an answer, the longest's."""
    if prompt is UNSET:
        return 0
    if _NUMBERS.match(prompt):
        return bytes(prompt).count(b",") + 1
    try:
        prompts = _Reading().items(prompt) or [prompt]
    except _TooMany:
        # The longest of so many is no more than all of them.
        return len(memoryview(prompt)) // _BYTES_PER_TOKEN
    return max(bytes(each).count(b",") + 1 if _ARRAY.match(each)
               else _text_bytes(each) // _BYTES_PER_TOKEN for each in prompts)


def _answer_tokens(members: Members) -> int:
    """Return how many tokens the answer may have; 0 where the body does not say."""
    for raw in (members.max_completion_tokens, members.max_tokens):
        tokens = None if raw is UNSET else _decoded(_number, raw)
        if tokens is not None:
            return max(0, int(tokens))
    return 0


def _decoded(decoder: "msgspec.json.Decoder[Any]", raw: msgspec.Raw) -> Any:
    """Return the value; None where it is not of the type that is asked for."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None

"""What a request needs of a model, and whether a model declares that it has it.

A need is an estimate, so it only orders candidates and never excludes one. What cannot be read of
a body is no need: whether the body is valid is for the upstream to say.

Source: specs/003 R21, R22.
"""

import dataclasses
import enum
import re
from typing import Any

import msgspec

from app.routing.catalogue import Model
from app.routing.model_field import UNSET, Members

# A context of at most so many tokens is no need: every model has it.
_LEAST_CONTEXT = 4096
# English text has about four bytes a token.
_BYTES_PER_TOKEN = 4
# Escapes are counted in so much of a text, and taken to be as frequent in its rest. The lengths of
# escapes divide it.
_SAMPLE_BYTES = 1020

_NOT_EMPTY = re.compile(rb"\[[ \t\n\r]*[^\] \t\n\r]")
_TOKEN_IDS = re.compile(rb"\[[ \t\n\r]*[\[0-9]")
_ARRAY, _TEXT = re.compile(rb"\["), re.compile(rb'"')
_FORMATS = {"json_schema": "structured_outputs", "json_object": "json_mode"}
_INPUTS = {"image_url": "image", "video_url": "video", "input_audio": "audio"}


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a request declares that it needs.

    features  as in Model.features
    inputs    as in Model.inputs, text left out
    context   tokens of prompt and answer together; 0: so few that every model has them
    """

    features: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    context: int = 0


NO_NEEDS = Needs()
_UNDECLARED = Model("")


class Fit(enum.StrEnum):
    """Whether a model declares what a request needs."""

    YES = "yes"
    UNKNOWN = "unknown"
    NO = "no"


def fit(needs: Needs, model: Model | None) -> tuple[Fit, tuple[str, ...]]:
    """Compare what a request needs with what a model declares.

    model    None: of a chute that no models feed describes
    Returns  the fit, and the names of what the model declares itself without
    Cost     1 µs, no I/O

    Source: specs/003 R22.
    """
    model, missing, unknown = model or _UNDECLARED, list[str](), False
    for needed, declared in ((needs.features, model.features), (needs.inputs, model.inputs)):
        if declared is None:
            unknown = unknown or bool(needed)
        else:
            missing += sorted(needed - declared)
    if needs.context:
        if model.context_length is None:
            unknown = True
        elif model.context_length < needs.context:
            missing.append("context")
    if missing:
        return Fit.NO, tuple(missing)
    return (Fit.UNKNOWN if unknown else Fit.YES), ()


# The types below take every JSON value, so that an odd one costs nothing but itself. Text stays as
# it stands in the body: to decode 1 MiB of it would take milliseconds.
_Scalar = str | int | float | bool | None


class _Part(msgspec.Struct, gc=False):
    type: Any = None
    text: msgspec.Raw = UNSET


class _Function(msgspec.Struct, gc=False):
    arguments: msgspec.Raw = UNSET


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | _Scalar | list[Any] = None


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = UNSET
    tool_calls: list[_ToolCall | _Scalar | list[Any]] | dict[str, Any] | _Scalar = None


class _Format(msgspec.Struct, gc=False):
    type: Any = None


_messages = msgspec.json.Decoder(list[_Message | _Scalar | list[Any]])
_parts = msgspec.json.Decoder(list[_Part | _Scalar | list[Any]])
_prompts = msgspec.json.Decoder(list[msgspec.Raw])
_format = msgspec.json.Decoder(_Format)
_number = msgspec.json.Decoder(int | float)


def read_needs(members: Members) -> Needs:
    """Read what a request needs from the members of its body.

    members  as found with `model`; `messages` counts, or `prompt` where there are no messages
    Returns  Needs; NO_NEEDS for most requests
    Cost     at most 1 ms for a body of 1 MiB with 200 messages and tools, no I/O

    Source: specs/003 R21.
    """
    inputs, features = set[str](), set[str]()
    if (members.tools is not UNSET and _NOT_EMPTY.match(members.tools)
            or members.functions is not UNSET and _NOT_EMPTY.match(members.functions)):
        features.add("tools")
    if members.response_format is not UNSET:
        wanted = _decoded(_format, members.response_format)
        if wanted is not None and isinstance(wanted.type, str) and wanted.type in _FORMATS:
            features.add(_FORMATS[wanted.type])
    tokens = _answer_tokens(members)
    if members.messages is UNSET:
        tokens += _prompt_tokens(members.prompt)
    elif not _is_plain(members.messages, tokens):
        text = 0
        for message in _decoded(_messages, members.messages) or ():
            if isinstance(message, _Message):
                text += _read_message(message, inputs)
        tokens += text // _BYTES_PER_TOKEN
    context = tokens if tokens > _LEAST_CONTEXT else 0
    if not features and not inputs and not context:
        return NO_NEEDS
    return Needs(frozenset(features), frozenset(inputs), context)


def _is_plain(messages: msgspec.Raw, tokens: int) -> bool:
    """Say whether messages are short and of text, as most are; `tokens` are needed beside them."""
    size = len(memoryview(messages))
    if tokens + size // _BYTES_PER_TOKEN > _LEAST_CONTEXT:
        return False
    data = bytes(messages)
    return b"_url" not in data and b"input_audio" not in data


def _read_message(message: _Message, inputs: set[str]) -> int:
    """Return the bytes of a message's text; add the kinds of its other parts to `inputs`."""
    size = _text_bytes(message.content)
    if not size and _ARRAY.match(message.content):
        for part in _decoded(_parts, message.content) or ():
            if isinstance(part, _Part):
                size += _text_bytes(part.text)
                if isinstance(part.type, str) and part.type in _INPUTS:
                    inputs.add(_INPUTS[part.type])
    if isinstance(message.tool_calls, list):
        size += sum(_text_bytes(call.function.arguments) for call in message.tool_calls
                    if isinstance(call, _ToolCall) and isinstance(call.function, _Function))
    return size


def _text_bytes(value: msgspec.Raw) -> int:
    """Return about how many bytes of UTF-8 a JSON string stands for; 0 for another value."""
    view = memoryview(value)
    if not _TEXT.match(view):
        return 0
    size, sample = len(view) - 2, bytes(view[1:-1][:_SAMPLE_BYTES])
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
    if _TOKEN_IDS.match(prompt):
        # Ids in place of text: as many as there are numbers.
        return max(ids.rpartition(b"[")[2].count(b",") + 1 for ids in bytes(prompt).split(b"]"))
    prompts = _decoded(_prompts, prompt) or (prompt,)
    return max(map(_text_bytes, prompts)) // _BYTES_PER_TOKEN


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

"""How many tokens an answer says that it has used.

The upstream puts a `usage` object near the end of each answer, streamed or not.

Source: specs/008 R6.
"""

import re
from typing import Annotated

import msgspec

# An object whose members may be objects, which have no objects in them.
_OBJECT = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
# A number far above any real one says nothing.
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**8)]


class CachedTokens(msgspec.Struct):
    """The `prompt_tokens_details` of a usage object."""

    cached_tokens: _Tokens | None = None


class Usage(msgspec.Struct):
    """A usage object; None where it says nothing. The cached tokens are a part of the prompt's."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: CachedTokens | None = None


_usage = msgspec.json.Decoder(Usage)


def read_usage(tail: bytes) -> Usage | None:
    """Return the last usage object within the last bytes of an answer, or None.

    Cost  2 µs for 4 KiB, no I/O

    Source: specs/008 R6.
    """
    place, found = len(tail), None
    # A stream may say `"usage": null` before and after.
    while found is None:
        place = tail.rfind(b'"usage"', 0, place)
        if place < 0:
            return None
        found = _OBJECT.match(tail, place)
    try:
        return _usage.decode(found[1])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None

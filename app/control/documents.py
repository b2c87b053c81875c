"""Splits a feed's document into entries, which stay JSON text until they are decoded one by one.

Source: specs/003 R13, R32.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from app.errors import FetchFailed
from app.routing.surrogates import ESCAPE, LONGEST_ESCAPE, REPLACEMENT

MAX_ENTRIES = 20_000
# An entry of the real feeds is about 1 KB. 64 KiB of the worst JSON take a few milliseconds.
_MAX_ENTRY_BYTES = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What is repaired of a document between two pauses takes 15 ms at the very most.
_WINDOW_BYTES = 64 * 1024

_TOKEN = re.compile(rb'(?P<quote>") |' + ESCAPE + rb"| (?P<not_finite>-?Infinity|NaN)",
                    re.DOTALL | re.VERBOSE)
_BRACKETS = re.compile(rb'(?P<quote>")|\\.|(?P<open>[\[{]+)|(?P<close>[\]}]+)', re.DOTALL)
# msgspec and json follow some thousand levels, less those of the functions that call them.
_MOST_DEEP = 500

# With no more commas an array's entries are built at once, in 17 to 40 ms. The larger one of the
# real feeds has 16,000 commas.
_FEW_COMMAS = 300_000
_NO_ENTRY = msgspec.Raw(b"")


def split(document: bytes, kind: Any, expected: str, pause: Callable[[], None],
          in_place_of_nan: bytes = b"{}") -> Any:
    """Decode the outside of a document; its parts stay JSON text.

    kind             a type of msgspec whose parts are Raw
    expected         what the document is to be, for the error
    pause            called now and then to let other greenlets run
    in_place_of_nan  JSON text. An empty object is never a valid value: it costs the row that it is
                     in, if the key is one that is read, and not the feed.
    Raises           FetchFailed
    Cost             2 ms a MiB between two pauses
    """
    document = document.removeprefix(_BYTE_ORDER_MARK)
    pause()
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.ValidationError:
        raise FetchFailed(f"not {expected}") from None
    except RecursionError:
        repaired = _flattened(document, pause)
    except msgspec.DecodeError:
        repaired = _repaired(document, in_place_of_nan, pause)
    if repaired == document:
        raise FetchFailed("not JSON")
    return split(repaired, kind, expected, pause, in_place_of_nan)


def _repaired(document: bytes, in_place_of_nan: bytes, pause: Callable[[], None]) -> bytes:
    """Replace what msgspec takes in no document: lone surrogate escapes, NaN and Infinity.

    The escapes are JSON, and Python writes the others. NaN within a string is text, and stays.
    Cost  20 ms a MiB; pauses
    """
    repaired, copied, in_string = bytearray(), 0, False
    for token in _tokens(_TOKEN, document, pause):
        instead = None
        if token.lastgroup == "quote":
            in_string = not in_string
        elif token.lastgroup == "lone":
            instead = REPLACEMENT
        elif token.lastgroup == "not_finite" and not in_string:
            instead = in_place_of_nan
        if instead is not None:
            repaired += document[copied:token.start()]
            repaired += instead
            copied = token.end()
    return bytes(repaired + document[copied:])


def _flattened(document: bytes, pause: Callable[[], None]) -> bytes:
    """Put null for each array or object with _MOST_DEEP others around it. Cost: as _repaired."""
    flat, copied, depth, in_string = bytearray(), 0, 0, False
    for token in _tokens(_BRACKETS, document, pause):
        if token.lastgroup == "quote":
            in_string = not in_string
        elif token.lastgroup is None or in_string:
            continue
        elif token.lastgroup == "open":
            above, depth = _MOST_DEEP - depth, depth + len(token[0])
            if 0 <= above < len(token[0]):
                flat += document[copied:token.start() + above]
                flat += b"null"
                # Until it ends; what does not end is no JSON.
                copied = len(document)
        else:
            below, depth = depth - _MOST_DEEP, depth - len(token[0])
            if 0 < below <= len(token[0]):
                copied = token.start() + below
    return bytes(flat + document[copied:])


def _tokens(pattern: re.Pattern[bytes], document: bytes,
            pause: Callable[[], None]) -> Iterator[re.Match[bytes]]:
    """Yield the matches of a pattern; pauses between two windows."""
    start = 0
    while start < len(document):
        pause()
        end = start + _WINDOW_BYTES
        # The window's end may cut a token that begins here or later: the next window has it.
        certain = end - LONGEST_ESCAPE if end < len(document) else end
        for token in pattern.finditer(document, start, end):
            if token.start() >= certain:
                break
            start = token.end()
            yield token
        start = max(start, certain)


def entries_of(document: bytes, expected: str, pause: Callable[[], None]) -> list[msgspec.Raw]:
    """Return the JSON texts of an array's entries; the parameters are those of `split`.

    Raises  FetchFailed, also if they are too many
    Cost    as `split`; 30 ms more, once, for the first document of very many commas
    """
    if document.count(b",") <= _FEW_COMMAS:
        entries: list[msgspec.Raw] = split(document, list[msgspec.Raw], expected, pause)
    else:
        bounded = split(document, _bounded(), expected, pause)
        entries = [each for each in msgspec.structs.astuple(bounded) if each is not _NO_ENTRY]
    if len(entries) > MAX_ENTRIES:
        raise FetchFailed(f"more than {MAX_ENTRIES} entries")
    return entries


@functools.cache
def _bounded() -> Any:
    """Return the type of an array of which the first entries are built.

    A struct that is written as an array skips what is beyond its fields: a list would build
    millions of entries before they could be counted. The type takes 10 MB and is seldom needed.
    """
    return msgspec.defstruct("Entries", [
        (f"entry_{number}", msgspec.Raw, _NO_ENTRY) for number in range(MAX_ENTRIES + 1)],
        array_like=True)


def decode(text: msgspec.Raw) -> Any:
    """Return the value of one entry.

    Raises  ValueError, saying what is wrong with the entry
    """
    if len(memoryview(text)) > _MAX_ENTRY_BYTES:
        raise ValueError(f"more than {_MAX_ENTRY_BYTES} bytes")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # Takes numbers that msgspec finds too large: they may belong to a key that is not read.
        return json.loads(bytes(text))
    except (ValueError, RecursionError):
        raise ValueError("invalid JSON") from None

"""Splits a feed's document into entries, which stay JSON text until they are decoded one by one.

Source: specs/003 R13.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from app.errors import FetchFailed

MAX_ENTRIES = 20_000
# An entry of the real feeds is about 1 KB. 64 KiB of the worst JSON take a few milliseconds.
_MAX_ENTRY_BYTES = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# An array of JSON texts. A struct that is written as an array skips what is beyond its fields
# without building it: a list would build millions of entries before they could be counted.
_NO_ENTRY = msgspec.Raw(b"")
Entries = msgspec.defstruct(
    "Entries", [(f"entry_{number}", msgspec.Raw, _NO_ENTRY) for number in range(MAX_ENTRIES + 1)],
    array_like=True)


def split(document: bytes, kind: Any, expected: str, pause: Callable[[], None],
          in_place_of_nan: bytes = b"{}") -> Any:
    """Decode the outside of a document; its parts stay JSON text.

    kind             Entries, or a struct with a part for each key
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
    except (msgspec.DecodeError, RecursionError):
        repaired = _without_nan(document, in_place_of_nan, pause)
        if repaired == document:
            raise FetchFailed("not JSON") from None
    return split(repaired, kind, expected, pause, in_place_of_nan)


def _without_nan(document: bytes, instead: bytes, pause: Callable[[], None]) -> bytes:
    """Replace each NaN and Infinity: Python writes them, and msgspec takes no document with one."""
    for word in (b"-Infinity", b"Infinity", b"NaN"):
        if word in document:
            for before in (b": ", b":", b", ", b",", b"["):
                document = document.replace(before + word, before + instead)
                pause()
    return document


def entries_of(entries: Any) -> list[msgspec.Raw]:
    """Return the JSON texts of Entries; raises FetchFailed if they are too many."""
    found = [entry for entry in msgspec.structs.astuple(entries) if entry is not _NO_ENTRY]
    if len(found) > MAX_ENTRIES:
        raise FetchFailed(f"more than {MAX_ENTRIES} entries")
    return found


def decode(text: msgspec.Raw) -> Any:
    """Return the value of one entry.

    Raises  ValueError, saying what is wrong with the entry
    """
    if len(memoryview(text)) > _MAX_ENTRY_BYTES:
        raise ValueError(f"more than {_MAX_ENTRY_BYTES} bytes")
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        pass
    try:
        # Takes numbers that msgspec finds too large: they may belong to a key that is not read.
        return json.loads(bytes(text))
    except (ValueError, RecursionError):
        raise ValueError("invalid JSON") from None

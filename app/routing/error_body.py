"""The bodies of the upstream's errors, `{"detail": ...}`.

Source: specs/002 R12, R25.
"""

import msgspec

from app.routing.surrogates import without_lone_surrogates

# A longer body is not judged, and passed on as it came.
MAX_BYTES = 64 * 1024


class ErrorBody(msgspec.Struct):
    """What an error's body says, as JSON text."""

    detail: msgspec.Raw
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Detail(msgspec.Struct):
    message: str


_body = msgspec.json.Decoder(ErrorBody)
_detail = msgspec.json.Decoder(str | _Detail)


def read_error(body: bytes) -> ErrorBody | None:
    """Return what a whole body says; None where it is no JSON object with `detail`.

    Lone surrogate escapes are replaced in what is returned.
    Cost  some microseconds
    """
    try:
        text = str(body, "utf-8")
        try:
            return _body.decode(text)
        except msgspec.ValidationError:
            return None
        except msgspec.DecodeError:
            return _body.decode(without_lone_surrogates(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def said(error: ErrorBody) -> str | None:
    """Return the detail where it is a string."""
    detail = _decoded(error)
    return detail if isinstance(detail, str) else None


def shown(error: ErrorBody) -> str:
    """Return the detail as text: itself, its `message`, or else as it is written."""
    detail = _decoded(error)
    if isinstance(detail, _Detail):
        return detail.message
    # A list of problems, or an object of another shape.
    return bytes(error.detail).decode() if detail is None else detail


def _decoded(error: ErrorBody) -> str | _Detail | None:
    try:
        return _detail.decode(error.detail)
    except (msgspec.DecodeError, RecursionError):
        return None

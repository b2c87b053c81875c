"""Gives the upstream's errors the member by which OpenAI's SDKs show them.

The upstream's errors are `{"detail": ...}`. Several official SDKs show nothing of that: their user
reads "429 status code (no body)". They show `error.message`.

Source: specs/002 R25.
"""

import json
from collections.abc import Sequence

import msgspec

from app.routing.headers import Field, is_coded, value_of

# Answers that are longer are passed on as they came.
MAX_BYTES = 64 * 1024

_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error",
          422: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota",
          403: "permission_error", 429: "rate_limit_error"}


class _Members(msgspec.Struct):
    detail: msgspec.Raw
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Detail(msgspec.Struct):
    message: str


_members = msgspec.json.Decoder(_Members)
_text = msgspec.json.Decoder(str | _Detail)


def may_lack_member(status: int, fields: Sequence[Field]) -> bool:
    """Say whether an answer is an error of plain JSON."""
    kind = value_of("content-type", fields).partition(";")[0].strip().lower()
    return status >= 400 and kind == "application/json" and not is_coded(fields)


def with_error_member(status: int, body: bytes) -> bytes | None:
    """Put an `error` member before the members of an error's body.

    status   400..999
    body     the whole body
    Returns  the new body, in which the old members are byte for byte as they were; None where the
             body is no JSON object with `detail` and without `error`
    Cost     some microseconds, no I/O
    """
    try:
        members = _members.decode(str(body, "utf-8"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if members.error is not msgspec.UNSET:
        return None
    error = {"message": _message(bytes(members.detail)), "type": _type(status), "param": None,
             "code": None}
    rest = body.lstrip(b" \t\r\n")[1:]
    return b'{"error": ' + json.dumps(error).encode() + b", " + rest


def _message(detail: bytes) -> str:
    try:
        said = _text.decode(detail)
    except (msgspec.DecodeError, RecursionError):
        # A list of problems, or an object of another shape: as it is written.
        return detail.decode()
    return said if isinstance(said, str) else said.message


def _type(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "api_error")

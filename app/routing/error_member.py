"""Gives the upstream's errors the member by which OpenAI's SDKs show them.

The upstream's errors are `{"detail": ...}`. Several official SDKs show nothing of that: their user
reads "429 status code (no body)". They show `error.message`.

Source: specs/002 R25.
"""

import json
from collections.abc import Sequence

import msgspec

from app.routing.error_body import read_error, shown
from app.routing.headers import Field, is_coded, media_type

_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error",
          422: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota",
          403: "permission_error", 429: "rate_limit_error"}

# Fields that tell of the exact bytes of a body (RFC 9110 section 8.8.3, RFC 1864, RFC 3230, RFC
# 9530), and signatures that may cover such a field (RFC 9421).
_OF_THE_BYTES = frozenset(("etag", "content-md5", "digest", "repr-digest", "content-digest",
                           "signature", "signature-input"))


def may_lack_member(status: int, fields: Sequence[Field]) -> bool:
    """Say whether an answer is an error of plain JSON."""
    return status >= 400 and media_type(fields) == "application/json" and not is_coded(fields)


def fields_of_changed(fields: Sequence[Field], body: bytes) -> list[Field]:
    """Return the fields of an answer whose body has become this one.

    Its length follows. What was said of the old bytes goes.
    """
    return [(name, str(len(body)) if name.lower() == "content-length" else value)
            for name, value in fields if name.lower() not in _OF_THE_BYTES]


def with_error_member(status: int, body: bytes) -> bytes | None:
    """Put an `error` member before the members of an error's body.

    status   400..999
    body     the whole body
    Returns  the new body, in which the old members are byte for byte as they were; None where the
             body is no JSON object with `detail` and without `error`
    Cost     some microseconds, no I/O
    """
    found = read_error(body)
    if found is None or found.error is not msgspec.UNSET:
        return None
    error = {"message": shown(found), "type": _type(status), "param": None, "code": None}
    rest = body.lstrip(b" \t\r\n")[1:]
    return b'{"error": ' + json.dumps(error).encode() + b", " + rest


def _type(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "api_error")

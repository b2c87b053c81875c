"""Answers to requests that the server itself could not serve.

gunicorn's own answer is HTML that quotes the request.

Source: specs/002 R21, specs/006 W11.
"""

import email.utils
from collections.abc import Iterable

from gunicorn.http.errors import (ExpectationFailed, InvalidResponseHeader,
                                  InvalidResponseHeaderName, LimitRequestHeaders,
                                  LimitRequestLine, ParseException)

from app.errors import ApiError

# gunicorn raises these where the app's own answer is at fault, not the request.
_OUR_FAULT = (InvalidResponseHeader, InvalidResponseHeaderName)
_REASONS: dict[type[Exception], tuple[int, str]] = {
    LimitRequestLine: (414, "The request line is too long."),
    ExpectationFailed: (417, "The expectation cannot be met."),
    LimitRequestHeaders: (431, "The header fields are too large."),
}
_PHRASES = {408: "Request Timeout", 414: "URI Too Long", 417: "Expectation Failed",
            431: "Request Header Fields Too Large", 500: "Internal Server Error"}


def refusal_for(exc: BaseException) -> ApiError:
    """Return what a client gets for an exception that ended its request in the server's hands."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, ParseException) and not isinstance(exc, _OUR_FAULT):
        status, message = _REASONS.get(type(exc), (400, "The request is not valid HTTP."))
        return ApiError("bad_request", message, status=status)
    return ApiError("internal_error", "Something went wrong in the router.")


def as_bytes(error: ApiError, request_id: str, more: Iterable[tuple[str, str]]) -> bytes:
    """Return the whole answer, which ends its connection; `more` are header fields of it."""
    body = error.body()
    head = (f"HTTP/1.1 {error.status} {_PHRASES.get(error.status, 'Bad Request')}\r\n"
            f"Date: {email.utils.formatdate(usegmt=True)}\r\n"
            "Server: gunicorn\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
            f"Content-Length: {len(body)}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in more) + "\r\n")
    return head.encode("ascii") + body

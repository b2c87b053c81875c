"""Every exception of the app, and how a request that ends badly is answered.

    Exception
    +-- ApiError             an answer made by the router, in the shape that OpenAI clients parse
    +-- UpstreamFailed       (routing.outcomes) an attempt failed before commit
    +-- BodyBroke            an upstream response body broke off after commit
    +-- FetchFailed          a feed could not be fetched or read
    +-- ConfigError          (config) the environment cannot be used
    +-- NoDirectory          (shared.directory) no room for what the workers share
    +-- InvalidMessage       (upstream.head) the upstream sent something that is not HTTP
    +-- OpeningTookTooLong   (sticky.redis_connections) Redis could not be connected to in time
    +-- _TooLate             (sticky.redis) Redis did not answer in time
    +-- _TooMany             (routing.needs_reader) a body has more items than are looked at
    +-- ValueError
    |   +-- BadValue         (config_parsers) a variable's value has no meaning
    |       +-- BadFile      (config_parsers) a file that a variable names cannot be used
    +-- OSError
        +-- Disconnected     (upstream.connection) the upstream closed before its response head
        +-- BrokenPipeError
            +-- StreamCut    makes the server cut the client's transfer
    BaseException
    +-- ClientGone           thrown into a request's greenlet when its client has left
    +-- ShuttingDown         thrown into a request's greenlet when its worker ends before it
    +-- IdleTooLong          thrown into the greenlet of a connection that waits for its client
    +-- BodyTooSlow          thrown into a request whose body still arrives, for another's sake

The last four are not of the class `Exception`. They interrupt a wait inside a library, and
libraries take every `Exception` there for a failure of the upstream.

Source: specs/002 R21, specs/006 W1-W4, specs/007 R1, R3, R20.
"""

import errno
import json
import random
from collections.abc import Iterable

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

# The same request may work some seconds later. Each is told another number of seconds, so that they
# do not all come back together. Source: specs/002 R66.
RETRY_LATER = frozenset(("no_candidates", "overloaded"))
_LONGEST_RETRY_AFTER_S = 15

# code -> (HTTP status, error type, the request field at fault). Source: specs/002 R21.
API_ERRORS: dict[str, tuple[int, str, str | None]] = {
    "invalid_json": (400, INVALID_REQUEST, None),
    "invalid_body": (400, INVALID_REQUEST, None),
    "missing_model": (400, INVALID_REQUEST, "model"),
    "invalid_model_list": (400, INVALID_REQUEST, "model"),
    "unknown_model": (400, INVALID_REQUEST, "model"),
    "bad_request": (400, INVALID_REQUEST, None),
    "not_found": (404, INVALID_REQUEST, None),
    "model_not_found": (404, INVALID_REQUEST, "model"),
    "method_not_allowed": (405, INVALID_REQUEST, None),
    "request_timeout": (408, INVALID_REQUEST, None),
    "request_too_large": (413, INVALID_REQUEST, None),
    "unsupported_encoding": (415, INVALID_REQUEST, None),
    "internal_error": (500, SERVER_ERROR, None),
    "upstream_connect_error": (502, SERVER_ERROR, None),
    "upstream_first_body_byte_error": (502, SERVER_ERROR, None),
    "no_candidates": (503, SERVER_ERROR, "model"),
    "overloaded": (503, SERVER_ERROR, None),
    "missing_allowlist": (503, SERVER_ERROR, None),
    "upstream_header_timeout": (504, SERVER_ERROR, None),
    "upstream_first_body_byte_timeout": (504, SERVER_ERROR, None),
}


class ApiError(Exception):
    """An answer made by the router instead of the upstream.

    code     key of API_ERRORS, which gives status, type and param
    message  for the client: without body text, tokens, addresses and internal paths
    status   replaces the status of the code, where the HTTP parser knows a closer one (414, 431)
    headers  more header fields of the answer: (name, value) pairs
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        default_status, self.type, self.param = API_ERRORS[code]
        self.code = code
        self.message = message
        self.status = status or default_status
        self.headers = tuple(headers)

    def body(self) -> bytes:
        """Return the JSON body of the answer."""
        return error_body(self.message, self.type, self.param, self.code)


class BodyBroke(Exception):
    """An upstream response body broke off; `cause` is short, bad_framing, silence or reset."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class FetchFailed(Exception):
    """A feed could not be fetched or read; the text is safe to log."""


class StreamCut(BrokenPipeError):
    """Ends a response that must not look complete.

    A WSGI server takes an OSError with EPIPE for a broken connection. gunicorn then closes the
    client's socket without the proper end of the transfer, and logs no traceback.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the upstream's answer broke off")


class ClientGone(BaseException):
    """The client closed its connection while its request was waiting."""


class ShuttingDown(BaseException):
    """The worker ends before the request does."""


class IdleTooLong(BaseException):
    """The worker closes a connection on which no request is under way."""


class BodyTooSlow(BaseException):
    """What a request whose body is still arriving takes is needed by another.

    place_needed  it is the connection, not the memory
    """

    def __init__(self, place_needed: bool = False) -> None:
        super().__init__()
        self.place_needed = place_needed


def overloaded(message: str) -> ApiError:
    """Return the refusal of a request that can be sent again, here or elsewhere."""
    return ApiError("overloaded", message)


def retry_after() -> tuple[str, str]:
    """Return the header field that says when to send a request again."""
    return "Retry-After", str(random.randint(1, _LONGEST_RETRY_AFTER_S))


def error_body(message: str, type_: str, param: str | None, code: str | None) -> bytes:
    """Return an OpenAI error object as JSON bytes; it always has all four keys."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return json.dumps({"error": error}).encode()

"""The outcome table: what an attempt saw before commit, and what follows.

An attempt that fails in one of these ways sends the request on to the next candidate. When none
follows, the failure at hand is the answer. Everything else (2xx with a body, every other status) is
passed to the client. After commit nothing is retried.

Source: specs/002 R11-R14, R60, R61.
"""

import dataclasses
import enum

from app.routing.error_body import read_error, said

# A timeout on a larger request body says nothing of the model: reading it takes any model long.
LARGE_BODY = 256 * 1024
_UNREACHABLE = "The upstream could not be reached or gave no valid answer."


class Blame(enum.Enum):
    """Whom the end of an attempt is held against."""

    NOBODY = "nobody"
    MODEL = "model"
    # The model is full. That says nothing against it, and it keeps its clients.
    SOFTLY = "softly"
    # The door that all models share.
    EDGE = "edge"


class Failure(enum.Enum):
    """A retryable failure, and what follows from it.

    reason   its name in errors, metrics and the log
    blame    whom it is held against
    counted  with the edge failures in a row that end a request
    message  of the router's own answer when no attempt follows; None: the upstream's is passed on
    """

    UNREACHABLE = "upstream_connect_error", Blame.EDGE, True, _UNREACHABLE
    CONNECTION_LOST = "upstream_connect_error", Blame.EDGE, False, _UNREACHABLE
    EDGE_503 = "edge_503", Blame.EDGE, True, None
    HEADER_TIMEOUT = ("upstream_header_timeout", Blame.MODEL, False,
                      "The upstream sent no response headers in time.")
    UNAVAILABLE = "upstream_503", Blame.MODEL, False, None
    MODEL_NOT_FOUND = "upstream_404", Blame.MODEL, False, None
    FIRST_BODY_BYTE_TIMEOUT = ("upstream_first_body_byte_timeout", Blame.MODEL, False,
                               "The upstream sent no body in time.")
    FIRST_BODY_BYTE_ERROR = ("upstream_first_body_byte_error", Blame.MODEL, False,
                             "The upstream's answer ended before its first byte.")
    AT_CAPACITY = "upstream_429_capacity", Blame.SOFTLY, False, None

    def __init__(self, reason: str, blame: Blame, counted: bool, message: str | None) -> None:
        self.reason = reason
        self.blame = blame
        self.counted = counted
        self.message = message

    @property
    def kind(self) -> str:
        """Return its name where failures of one reason are told apart."""
        return self.name.lower()


_TIMEOUTS = (Failure.HEADER_TIMEOUT, Failure.FIRST_BODY_BYTE_TIMEOUT)


def blame_for(failure: Failure | None, body_bytes: int) -> Blame:
    """Return whom an attempt is held against.

    failure     what it was, or None
    body_bytes  of the client's request
    """
    if failure is None or (failure in _TIMEOUTS and body_bytes > LARGE_BODY):
        return Blame.NOBODY
    return failure.blame


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One candidate tried once.

    failure  the retryable failure it was, or None
    blame    whom it is held against
    status   of the upstream's answer; None if there was none, or none worth passing on
    detail   a few words on the failure, for the log
    """

    model: str
    failure: Failure | None
    blame: Blame
    status: int | None
    detail: str
    duration_ms: float

    @property
    def outcome(self) -> str:
        """Return in a word how it ended; `abandoned`: the request ended before it did."""
        if self.failure is not None:
            return self.failure.reason
        return "abandoned" if self.status is None else str(self.status)

    @property
    def is_success(self) -> bool:
        """Say whether it committed with a 2xx."""
        return self.failure is None and self.status is not None and 200 <= self.status < 300


class UpstreamFailed(Exception):
    """An attempt failed before commit.

    detail  a few words for the log: no host, no header, no byte of a body
    """

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(f"{failure.reason} ({detail})")
        self.failure = failure
        self.detail = detail


def unavailable(content_type: str, body: bytes) -> Failure:
    """Return which failure a 503 is.

    content_type  empty where there is none
    body          its first byte at least, which counts where there is no content type

    The backend itself never says HTML: the proxies in front of it do.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    is_html = media_type == "text/html" or (not media_type and body.startswith(b"<"))
    return Failure.EDGE_503 if is_html else Failure.UNAVAILABLE


# What the `detail` of a refusal begins with. Any other 404 or 429 is no matter of the model alone:
# the next candidate would get it too.
_BEGINNINGS = {
    404: ("model not found", Failure.MODEL_NOT_FOUND),
    429: ("Infrastructure is at maximum capacity", Failure.AT_CAPACITY),
}


def refusal(status: int, body: bytes) -> Failure | None:
    """Return the failure that a refusal is, or None.

    status  404 or 429
    body    whole

    Source: specs/002 R12.
    """
    beginning, failure = _BEGINNINGS[status]
    error = read_error(body)
    detail = said(error) if error is not None else None
    return failure if (detail or "").startswith(beginning) else None

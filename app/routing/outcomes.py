"""The retry table: what an attempt saw before commit, and what follows.

An attempt that fails in one of these ways sends the request on to the next candidate. When none
is left, the status and code of the last failure are the answer. Everything else (2xx with a body,
429, every other status) is passed to the client. After commit nothing is retried.

Source: specs/002 R11-R14.
"""

import dataclasses
import enum

from app.routing.error_body import read_error, said


class Failure(enum.StrEnum):
    """A retryable failure; the value is its name in errors, metrics and the log."""

    CONNECT_ERROR = "upstream_connect_error"
    HEADER_TIMEOUT = "upstream_header_timeout"
    UNAVAILABLE = "upstream_503"
    FIRST_BODY_BYTE_TIMEOUT = "upstream_first_body_byte_timeout"
    FIRST_BODY_BYTE_ERROR = "upstream_first_body_byte_error"
    MODEL_NOT_FOUND = "upstream_404"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One candidate tried once.

    failure  the retryable failure it was, or None
    status   of the upstream's answer; None if there was none, or none worth passing on
    detail   a few words on the failure, for the log
    """

    model: str
    failure: Failure | None
    status: int | None
    detail: str
    duration_ms: float

    @property
    def outcome(self) -> str:
        """Return in a word how it ended; `abandoned`: the request ended before it did."""
        return self.failure or ("abandoned" if self.status is None else str(self.status))


class UpstreamFailed(Exception):
    """An attempt failed before commit.

    detail  a few words for the log: no host, no header, no byte of a body
    """

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(f"{failure} ({detail})")
        self.failure = failure
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Exhausted:
    """The answer when the last candidate failed like this: error code and message."""

    code: str
    message: str


# None: the upstream's own answer is passed through. Source: specs/002 R12.
WHEN_EXHAUSTED: dict[Failure, Exhausted | None] = {
    Failure.CONNECT_ERROR: Exhausted(
        "upstream_connect_error", "The upstream could not be reached or gave no valid answer."),
    Failure.HEADER_TIMEOUT: Exhausted(
        "upstream_header_timeout", "The upstream sent no response headers in time."),
    Failure.UNAVAILABLE: None,
    Failure.MODEL_NOT_FOUND: None,
    Failure.FIRST_BODY_BYTE_TIMEOUT: Exhausted(
        "upstream_first_body_byte_timeout", "The upstream sent no body in time."),
    Failure.FIRST_BODY_BYTE_ERROR: Exhausted(
        "upstream_first_body_byte_error", "The upstream's answer ended before its first byte."),
}


def status_failure(status: int) -> Failure | None:
    """Return the retryable failure that a response status is, or None.

    status  100..999, as the upstream sent it

    503 alone. 429 is never retried: it also says that the whole upstream is at capacity.
    """
    return Failure.UNAVAILABLE if status == 503 else None


def not_found_failure(body: bytes) -> Failure | None:
    """Return MODEL_NOT_FOUND if the body of a 404 says that the upstream does not know the model.

    Another 404 is no matter of the model: the next candidate would get it too.

    Source: specs/002 R12.
    """
    error = read_error(body)
    detail = said(error) if error is not None else None
    return Failure.MODEL_NOT_FOUND if (detail or "").startswith("model not found") else None

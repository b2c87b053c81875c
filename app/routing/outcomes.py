"""The retry table: what an attempt saw, and what that means before commit.

Before a byte of the response has been given to the client, the outcomes listed here send the
request on to the next candidate; when none is left, the last one's status and code are the
answer. Everything else (2xx with a body, 429, every other status) is passed to the client.
After commit nothing is ever retried, so the table needs no column for it.

Source: specs/002 R11-R14.
"""

import dataclasses
import enum


class Outcome(enum.StrEnum):
    """A retryable failure; the value is its name in errors, metrics and the log."""

    CONNECT_ERROR = "upstream_connect_error"
    HEADER_TIMEOUT = "upstream_header_timeout"
    UNAVAILABLE = "upstream_503"
    FIRST_BODY_BYTE_TIMEOUT = "upstream_first_body_byte_timeout"
    FIRST_BODY_BYTE_ERROR = "upstream_first_body_byte_error"


class UpstreamFailed(Exception):
    """An attempt failed before commit.

    detail  a few words for the log: no host, no header, no byte of a body
    """

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(f"{outcome} ({detail})")
        self.outcome = outcome
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Exhausted:
    """The answer when the last candidate failed like this: error code and message."""

    code: str
    message: str


# None: the upstream's own answer is passed through. Source: specs/002 R12.
WHEN_EXHAUSTED: dict[Outcome, Exhausted | None] = {
    Outcome.CONNECT_ERROR: Exhausted(
        "upstream_connect_error", "The upstream could not be reached or gave no valid answer."),
    Outcome.HEADER_TIMEOUT: Exhausted(
        "upstream_header_timeout", "The upstream sent no response headers in time."),
    Outcome.UNAVAILABLE: None,
    Outcome.FIRST_BODY_BYTE_TIMEOUT: Exhausted(
        "upstream_first_body_byte_timeout", "The upstream sent no body in time."),
    Outcome.FIRST_BODY_BYTE_ERROR: Exhausted(
        "upstream_first_body_byte_error", "The upstream's answer ended before its first byte."),
}


def status_outcome(status: int) -> Outcome | None:
    """Return the retryable failure that a response status is, or None.

    status  100..999, as the upstream sent it

    503 alone: 429 is never retried, since it also says that the whole backend is at capacity.
    """
    return Outcome.UNAVAILABLE if status == 503 else None

"""Read a request body: whole, bounded in size and in time, or not at all.

The server's own limits are not enough: it hands over a chunked body that it has truncated at the
limit, and a body whose client died in the middle, as if they were complete.

Source: specs/002 R1, R21.
"""

import contextlib
from typing import Any

from app.client_socket import client_of
from app.errors import ApiError
from app.eventloop import Deadline

_PIECE = 64 * 1024
# A body that is skipped has arrived with its head; a later one is not waited for.
_SKIP_S = 0.02


def read_body(environ: dict[str, Any], max_bytes: int, timeout_s: float) -> bytes:
    """Read the client's request body.

    environ    the WSGI environment
    max_bytes  a longer body is refused, announced or not
    timeout_s  total, seconds
    Returns    the bytes
    Raises     ApiError: request_too_large, request_timeout, invalid_body
    Cost       I/O; switches greenlets

    A refused body's rest is not read: the connection ends after the answer.
    """
    announced = int(environ["CONTENT_LENGTH"]) if environ.get("CONTENT_LENGTH") else None
    try:
        if announced is not None and announced > max_bytes:
            raise ApiError("request_too_large", f"The body is larger than {max_bytes} bytes.")
        with Deadline(timeout_s, lambda: ApiError(
                "request_timeout", f"The body was not complete within {timeout_s:g} s.")):
            body = _read(environ["wsgi.input"], max_bytes, announced)
        client_of(environ).body_taken()
        if announced is not None and len(body) < announced:
            raise ApiError("invalid_body", "The body ended early.")
        return body
    except ApiError:
        client_of(environ).abandon_body()
        raise


def skip_body(environ: dict[str, Any]) -> None:
    """Read the body of a refused request if it is small and here, so that the connection can stay.

    Cost: I/O; waits for 20 ms at most
    """
    announced = int(environ.get("CONTENT_LENGTH") or 0)
    if not 0 < announced <= _PIECE:
        return
    with contextlib.suppress(ApiError):
        with Deadline(_SKIP_S, lambda: ApiError("request_timeout", "")):
            body = _read(environ["wsgi.input"], _PIECE, announced)
        if len(body) == announced:
            client_of(environ).body_taken()


def _read(stream: Any, max_bytes: int, announced: int | None) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            # One byte more than allowed is enough to know.
            piece = stream.read(min(_PIECE, max_bytes + 1 - size))
        except Exception as error:
            # Broken chunks are plain exceptions of the server's parser, a lost client an OSError.
            raise ApiError("invalid_body", "The body could not be read.") from error
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise ApiError("request_too_large", f"The body is larger than {max_bytes} bytes.")
        if size == announced:
            return b"".join(pieces)

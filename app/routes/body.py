"""Read a request body: whole, bounded in size and in time, or not at all.

The server's own limits are not enough: it hands over a chunked body that it has truncated at the
limit, and a body whose client died in the middle, as if they were complete.

Source: specs/002 R1, R21, R40, specs/007 R20.
"""

import contextlib
import re
from typing import Any

from app.client import client_of
from app.errors import ApiError
from app.eventloop import Deadline
from app.inflight import Admission

_PIECE = 64 * 1024
# A body that is skipped has arrived with its head; a later one is not waited for.
_SKIP_S = 0.02
# A client has a second more for each so many bytes that it announces: 2 Mbit/s.
_BYTES_PER_SECOND = 256 * 1024
_CODING = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40}")


def judge_announced(environ: dict[str, Any], max_bytes: int) -> int:
    """Refuse a body by what the head says of it.

    environ    the WSGI environment
    max_bytes  a longer body is refused
    Returns    the announced length, bytes; 0 where none is announced
    Raises     ApiError: unsupported_encoding, request_too_large
    Cost       1 µs
    """
    for coding in environ.get("HTTP_CONTENT_ENCODING", "").split(","):
        name = coding.strip()
        if name and name.lower() != "identity":
            shown = name if _CODING.fullmatch(name) else "that it names"
            raise ApiError("unsupported_encoding",
                           f"A body in the content coding {shown} is not read here; send it plain.",
                           headers=[("Accept-Encoding", "identity")])
    announced = int(environ.get("CONTENT_LENGTH") or 0)
    if announced > max_bytes:
        raise _too_large(max_bytes)
    return announced


def read_body(environ: dict[str, Any], max_bytes: int, timeout_s: float,
              admission: Admission) -> bytes:
    """Read the client's request body.

    environ    the WSGI environment
    max_bytes  a longer body is refused
    timeout_s  total, seconds; a second is added for each full 256 KiB announced
    admission  told of what comes
    Returns    the bytes
    Raises     ApiError: request_too_large, request_timeout, invalid_body, overloaded
    Cost       I/O; switches greenlets

    A refused body's rest is not read: the connection ends after the answer.
    """
    announced = int(environ["CONTENT_LENGTH"]) if environ.get("CONTENT_LENGTH") else None
    timeout_s += (announced or 0) // _BYTES_PER_SECOND
    admission.within_s = timeout_s
    client = client_of(environ)
    client.count_into(admission)
    client.invite_body()
    stream = environ["wsgi.input"]
    if announced is not None and admission.came >= announced:
        # It came with its head: no timer is needed, which costs 5 µs.
        body = _read(stream, max_bytes, announced, admission)
    else:
        with Deadline(timeout_s, lambda: ApiError(
                "request_timeout", f"The body was not complete within {timeout_s:g} s.")):
            body = _read(stream, max_bytes, announced, admission)
    if announced is not None and len(body) < announced:
        raise ApiError("invalid_body", "The body ended early.")
    client.body_taken()
    return body


def skip_body(environ: dict[str, Any]) -> None:
    """Read the body of a refused request if it is small and here, so that the connection can stay.

    Cost: I/O; waits for 20 ms at most
    """
    announced = int(environ.get("CONTENT_LENGTH") or 0)
    if not 0 < announced <= _PIECE:
        return
    with contextlib.suppress(ApiError):
        with Deadline(_SKIP_S, lambda: ApiError("request_timeout", "")):
            body = _read(environ["wsgi.input"], _PIECE, announced, None)
        if len(body) == announced:
            client_of(environ).body_taken()


def _read(stream: Any, max_bytes: int, announced: int | None,
          admission: Admission | None) -> bytes:
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
            raise _too_large(max_bytes)
        if admission is not None and announced is None:
            admission.count_body(len(piece))
        if size == announced:
            return b"".join(pieces)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError("request_too_large", f"The body is larger than {max_bytes} bytes.")

"""Which header fields may cross, each way.

Source: specs/002 R10, R16; RFC 9110 section 7.6.1.
"""

import functools
import re
import secrets
from collections.abc import Iterable, Mapping

SELECTED_MODEL = "x-chutes-autopilot-selected"
SKIPPED = "x-chutes-autopilot-skipped"
ATTEMPTS = "x-chutes-autopilot-attempts"
STICKY = "x-chutes-autopilot-sticky"
SERVER_TIMING = "Server-Timing"
REQUEST_ID = "X-Request-Id"
# What the upstream calls its own work on a request, in lower case.
INVOCATION_ID = "x-chutes-invocationid"

Field = tuple[str, str]

# OpenAI's SDKs send a request again unless they are told not to. Source: specs/002 R66.
NO_RETRY: Field = ("x-should-retry", "false")

HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"))
# What this side of the exchange decides for itself: the URL's host, the rewritten body's length,
# an expectation the server has already met, an answer that needs no decoding, the request's id.
# With a trace the upstream answers 200 to everything, and failover would see no error.
_MADE_HERE = frozenset(
    ("host", "content-length", "expect", "accept-encoding", REQUEST_ID.lower(), "x-chutes-trace"))
# The server in front of the app writes these two itself.
_SERVERS_OWN = frozenset(("date", "server"))
_ALWAYS_BLOCKED = HOP_BY_HOP | _SERVERS_OWN | {SELECTED_MODEL, SKIPPED, ATTEMPTS, STICKY}
_MOST_SKIPPED = 10
_LONGEST_VALUE = 4000

# A name that a response field can hold: visible ASCII and spaces.
_HOLDABLE = re.compile(rf"[\x20-\x7e]{{1,{_LONGEST_VALUE}}}")
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Version, trace id, parent id and flags; later versions may have more behind them, `ff` is none.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?")


def upstream_headers(environ: Mapping[str, str], request_id: str) -> dict[str, str]:
    """Return the header fields an upstream request carries.

    environ     the WSGI environment; repeated fields come joined by commas there
    request_id  sane id of this request
    Returns     name -> value, ready to send; Host and Content-Length are left to the transport

    Source: specs/002 R10.
    """
    dropped = _named_by(environ.get("HTTP_CONNECTION", ""))
    headers = {}
    for key, value in environ.items():
        name = _field_name(key)
        if name and name.lower() not in dropped:
            headers[name] = value
    headers["Accept-Encoding"] = "identity"
    headers[REQUEST_ID] = request_id
    return headers


def client_headers(fields: Iterable[Field]) -> list[Field]:
    """Return the upstream's response fields that the client gets, repeated ones included.

    Source: specs/002 R16.
    """
    fields = list(fields)
    dropped = _named_by(",".join(v for name, v in fields if name.lower() == "connection"))
    blocked = _ALWAYS_BLOCKED | dropped
    return [(name, value) for name, value in fields if name.lower() not in blocked]


def value_of(name: str, fields: Iterable[Field]) -> str:
    """Return the values of a field by its lower-case name, joined; empty where it is not there."""
    # A list is made in half the time that a generator takes.
    return ", ".join([value for field, value in fields if field.lower() == name])


def media_type(fields: Iterable[Field]) -> str:
    """Return the type of a body in lower case, without parameters; empty where none is named."""
    return value_of("content-type", fields).partition(";")[0].strip().lower()


def is_coded(fields: Iterable[Field]) -> bool:
    """Say whether a body has a Content-Encoding, which is never decoded here."""
    return value_of("content-encoding", fields).lower() not in ("", "identity")


def selected_fields(model: str) -> list[Field]:
    """Return the response field that names the model; none where no field can hold its name.

    Source: specs/002 R17, R55.
    """
    return [(SELECTED_MODEL, model)] if _HOLDABLE.fullmatch(model) else []


def skipped_fields(skipped: Iterable[tuple[str, str]]) -> list[Field]:
    """Return the response field that names what was passed over; none where nothing was.

    skipped  names, each with the reason; what no field can hold, or has no room left, is left out

    Source: specs/002 R52, R55.
    """
    shown, room = list[str](), _LONGEST_VALUE
    for name, reason in skipped:
        entry = f"{name};{reason}"
        size = len(entry) + len(", ")
        if len(shown) < _MOST_SKIPPED and size <= room and _HOLDABLE.fullmatch(name):
            shown.append(entry)
            room -= size
    return [(SKIPPED, ", ".join(shown))] if shown else []


def sane_request_id(given: str) -> str:
    """Return a client's X-Request-Id if it is sane, else a new one.

    Source: specs/002 R18.
    """
    return given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)


def sane_id(given: str) -> str:
    """Return an id that somebody else has given, where it can be logged; else nothing."""
    return given if _SANE_ID.fullmatch(given) else ""


def trace_id(traceparent: str) -> str:
    """Return the trace id of a `traceparent`; nothing where it is not valid.

    Source: specs/002 R69; https://www.w3.org/TR/trace-context/ section 3.2.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (traceparent.startswith("00") and found["more"]):
        return ""
    return found[1]


@functools.lru_cache(maxsize=1024)
def _field_name(key: str) -> str | None:
    """Return the header field a WSGI key stands for, or None if it does not cross."""
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        name = key
    elif key.startswith("HTTP_"):
        name = key[5:]
    else:
        return None
    name = name.replace("_", "-").title()
    return None if name.lower() in HOP_BY_HOP | _MADE_HERE else name


def _named_by(connection: str) -> frozenset[str]:
    if not connection:
        return frozenset()
    return frozenset(name.strip().lower() for name in connection.split(","))

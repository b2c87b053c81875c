"""What a request's head must hold beyond what gunicorn's parser asks of it.

Source: specs/002 R21, specs/006 W20, W24.
"""

import ipaddress
import re
from collections.abc import Iterable

from app.errors import ApiError

# RFC 9112 section 3.2, RFC 3986 section 3.2.2: a name or an address, and a port; no user before it,
# no path behind it, and no comma in it, by which two hosts would look like one.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|\[[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+;=:-]+\]|"
                   r"(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+)(?::([0-9]{1,5})?)?")
# Most hosts are of this form, which takes less time to see.
_is_plain_host = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,4})?").fullmatch
_ONCE = frozenset(("AUTHORIZATION", "HOST"))


def judge_head(version: tuple[int, int], fields: Iterable[tuple[str, str]]) -> tuple[bool, bool]:
    """Refuse what the parser lets pass and could be read in two ways.

    version  of HTTP: major, minor
    fields   names in upper case, and values
    Returns  whether the request announces a body, and whether its connection is to close after it
    Raises   ApiError bad_request
    Cost     2 µs
    """
    if version > (1, 1):
        raise ApiError("bad_request", "The version of HTTP is none that is spoken here.")
    names, announces, closes = set(), False, False
    for name, value in fields:
        if name in _ONCE and name in names:
            raise ApiError("bad_request", f"There are two {name.capitalize()} fields.")
        names.add(name)
        if name == "TRANSFER-ENCODING":
            if value.lower() != "chunked":
                # A body packed on the way would go upstream as if it had not been.
                raise ApiError("bad_request", "The transfer coding is not chunked alone.")
            announces = True
        elif name == "CONTENT-LENGTH":
            announces = announces or value != "0"
        elif name == "HOST":
            if not _is_plain_host(value):
                _judge_host(value)
        elif name == "CONNECTION" and "close" in (lower := value.lower()):
            # gunicorn heeds one field of this name, and only if it says nothing else.
            closes = closes or "close" in [option.strip(" \t") for option in lower.split(",")]
    if version == (1, 1) and "HOST" not in names:
        raise ApiError("bad_request", "There is no Host field.")  # RFC 9112 section 3.2
    return announces, closes


def _judge_host(value: str) -> None:
    match = _HOST.fullmatch(value)
    valid = match is not None
    if match and match[1]:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError:
            valid = False
    if not valid or (match and match[2] and int(match[2]) > 65535):
        raise ApiError("bad_request", "The Host field names no host.")

"""HTTP/1.1 response heads as bytes. No I/O.

Theory. A head is judged while it comes. Its first bytes can only be those of a status line, and a
line ends in CRLF. Whatever breaks one of the two is not HTTP/1.1 and never will be: a TLS alert, an
HTTP/2 frame, the greeting of another server, a head with bare LF. Nobody waits for the rest of it.

Source: specs/006 W7, W8, W22; RFC 9112 sections 4 and 5.
"""

import dataclasses
import re

# nginx allows 8 KiB by default, http.client 100 lines of 64 KiB.
LARGEST_HEAD = 64 * 1024
# Real servers send a few interim responses at most.
MOST_INTERIM = 16

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TEXT = r"[\t\x20-\x7e\x80-\xff]*"
_STATUS_LINE = re.compile(rf"HTTP/1\.([0-9]) ([1-9][0-9]{{2}})(?: ({TEXT}))?\r\n")
# The possessive *+ keeps blanks from being tried as the beginning of the text, one by one.
_FIELD = re.compile(rf"^({TOKEN}):[ \t]*+({TEXT})\r\n", re.MULTILINE)
# Any status line up to its code, digits that may vary as 0.
_BEGINNINGS = (b"HTTP/1.0 000 ", b"HTTP/1.0 000\r")
_MAJOR = len(b"HTTP/1.")
_AS_0 = bytes.maketrans(b"123456789", b"0" * 9)
# The place of the code's first digit.
_CLASS = len(b"HTTP/1.1 ")

_SWITCHING_PROTOCOLS = 101


class InvalidMessage(Exception):
    """The upstream's response is not valid HTTP. The text holds nothing of it and may be logged."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A response's status line and fields.

    status  100..999
    minor   minor version, 0..9: the 1 of HTTP/1.1
    fields  (name, value) in the order of arrival; names as spelled; repeated fields are kept
    """

    status: int
    minor: int
    reason: str
    fields: tuple[tuple[str, str], ...]

    @property
    def interim(self) -> bool:
        """Say whether this is an interim response: another one follows (RFC 9110 section 15.2)."""
        return self.status < 200

    def values(self, name: str) -> list[str]:
        """Return all values of a field; `name` is in lower case."""
        return [value for field, value in self.fields if field.lower() == name]

    @property
    def keeps_alive(self) -> bool:
        """Say whether the connection may serve another request after this response."""
        options = ",".join(self.values("connection")).lower()
        return self.minor >= 1 and "close" not in options


def parse_head(data: bytes) -> Head:
    """Parse a response head.

    data     from the status line to the empty line, both included
    Returns  Head
    Raises   InvalidMessage
    Cost     about 0.5 µs a field

    Source: RFC 9112 sections 4 and 5. Folded lines (section 5.2) are refused.
    """
    text = data.decode("latin-1")
    status_line = _STATUS_LINE.match(text)
    if status_line is None:
        raise InvalidMessage("bad status line")
    fields = _FIELD.findall(text, status_line.end())
    # The search skips lines that are no fields; the first and the last line are the only two.
    if len(fields) != text.count("\n") - 2 or not text.endswith("\r\n\r\n"):
        raise InvalidMessage("bad header field")
    status = int(status_line[2])
    if status == _SWITCHING_PROTOCOLS:
        raise InvalidMessage("unasked protocol switch")
    return Head(status, int(status_line[1]), status_line[3] or "",
                tuple([(name, value.rstrip(" \t")) for name, value in fields]))


class HeadReader:
    """Finds the head of the final response in bytes as they come; interim ones are dropped.

    has_begun  a byte has come
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._held = b""    # the beginning of a head
        self._line = 0      # where its first line begins that has not been judged
        self._interim = 0

    @property
    def in_final(self) -> bool:
        """Say whether what has come last is the beginning of a final response's head."""
        return self._held[_CLASS:_CLASS + 1] not in (b"", b"1")

    def feed(self, data: bytes) -> tuple[Head, bytes] | None:
        """Take what has come.

        data     at least one byte
        Returns  the final head and the bytes behind it, once it is whole
        Raises   InvalidMessage
        Cost     about 0.5 µs a field
        """
        self.has_begun = True
        known, data = len(self._held), self._held + data
        while (end := data.find(b"\r\n\r\n", max(known - 3, 0)) + 4) > 3:
            if end > LARGEST_HEAD:
                raise InvalidMessage("head too large")
            head, data, known, self._line = parse_head(data[:end]), data[end:], 0, 0
            if not head.interim:
                return head, data
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise InvalidMessage("too many interim responses")
        self._judge(data)
        self._held = data
        return None

    def _judge(self, data: bytes) -> None:
        """Raise InvalidMessage where no head begins with `data`."""
        if len(data) >= LARGEST_HEAD:
            raise InvalidMessage("head too large")
        while (end := data.find(b"\r\n", self._line) + 2) > 1:
            line = data[self._line:end].decode("latin-1")
            if not (_FIELD if self._line else _STATUS_LINE).fullmatch(line):
                raise InvalidMessage("bad header field" if self._line else "bad status line")
            self._line = end
        rest = data[self._line:]
        if b"\n" in rest or b"\r" in rest[:-1]:
            raise InvalidMessage("bare CR or LF")
        if not self._line and not _begins_status_line(rest):
            raise InvalidMessage("no status line")


def _begins_status_line(data: bytes) -> bool:
    shape = data[:_MAJOR] + data[_MAJOR:len(_BEGINNINGS[0])].translate(_AS_0)
    return (any(whole.startswith(shape) for whole in _BEGINNINGS)
            and data[_CLASS:_CLASS + 1] != b"0")

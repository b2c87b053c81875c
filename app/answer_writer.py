"""Writes an answer's head and body to the client.

Source: specs/002 R16, specs/006 W4.
"""

import functools
import re
import time
from collections.abc import Iterable

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidResponseHeader

# A line for each field, its name and value apart by what neither may hold.
_FIELDS = re.compile(
    rf"(?:{wsgi.TOKEN_RE.pattern}\0{wsgi.HEADER_VALUE_RE.pattern}\n)*")


class AnswerWriter(wsgi.Response):
    """gunicorn's writer, which takes a shorter way with the head and with the pieces of a body.

    gunicorn judges each name and each value of the head by itself, makes the date anew, and passes
    each piece of a chunked body, which may be a model's token, on through four functions.
    """

    headers_sent: bool

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Take the fields of the head, but for those that are the server's to say.

        Raises  InvalidResponseHeader where gunicorn would refuse a field
                TypeError if a name or a value is no text
        """
        fields = list(headers)
        lines = "".join([name + "\0" + value + "\n" for name, value in fields])
        if lines.count("\n") != len(fields) or not _FIELDS.fullmatch(lines):
            raise InvalidResponseHeader("a field of the answer")
        for name, value in fields:
            lower = name.lower()
            if lower not in util.hop_headers:
                self.headers.append((name, value.strip(" \t")))
                if lower == "content-length":
                    self.response_length = int(value)

    def send_headers(self) -> None:
        """Write the head, once."""
        if self.headers_sent:
            return
        lines = [f"HTTP/{self.req.version[0]}.{self.req.version[1]} {self.status}",
                 f"Server: {self.version}", f"Date: {_date(int(time.time()))}",
                 "Connection: close" if self.should_close() else "Connection: keep-alive"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        lines += [f"{name}: {value}" for name, value in self.headers]
        # Before: a part of it may be out when the writing ends in an error.
        self.headers_sent = True
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def write(self, piece: bytes) -> None:
        """Write a piece of the body, behind the head where that has not been sent.

        piece   an empty one is written as none: it would end a chunked body
        Raises  what ClientSocket.sendall raises
        Cost    a system call, and one for the head; a slow reader's takes more, and switches
        """
        if not self.chunked or not self.headers_sent:
            super().write(piece)
        elif piece:
            self.sock.sendall(b"%X\r\n%b\r\n" % (len(piece), piece))


@functools.lru_cache(1)
def _date(second: int) -> str:
    date: str = util.http_date(second)
    return date

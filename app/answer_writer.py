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

_FIELDS = re.compile(
    rf"(?:{wsgi.TOKEN_RE.pattern}: {wsgi.HEADER_VALUE_RE.pattern}\r\n)*")


class AnswerWriter(wsgi.Response):
    """gunicorn's writer, which takes a shorter way with the head and with the pieces of a body.

    gunicorn judges each name and each value of the head by itself, makes the date anew, and passes
    each piece of a chunked body, which may be a model's token, on through four functions.
    """

    headers_sent: bool

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Take the fields of the head, none of which is about the connection."""
        self.headers = list(headers)
        for name, value in self.headers:
            if name.lower() == "content-length":
                self.response_length = int(value)

    def send_headers(self) -> None:
        """Write the head, once.

        Raises  InvalidResponseHeader, if a field could be read as two; nothing is written then
        """
        if self.headers_sent:
            return
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        if fields.count("\n") != len(self.headers) or not _FIELDS.fullmatch(fields):
            raise InvalidResponseHeader("a field of the answer")
        lines = [f"HTTP/{self.req.version[0]}.{self.req.version[1]} {self.status}",
                 f"Server: {self.version}", f"Date: {_date(int(time.time()))}",
                 "Connection: close" if self.should_close() else "Connection: keep-alive"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        self.sock.sendall("\r\n".join([*lines, fields, ""]).encode("latin-1"))
        self.headers_sent = True

    def write(self, piece: bytes) -> None:
        """Write a piece of the body, behind the head where that has not been sent.

        piece   an empty one is written as none: it would end a chunked body
        Raises  what ClientSocket.sendall raises
        Cost    one system call
        """
        if not self.chunked or not self.headers_sent:
            super().write(piece)
        elif piece:
            self.sock.sendall(b"%X\r\n%b\r\n" % (len(piece), piece))


@functools.lru_cache(1)
def _date(second: int) -> str:
    date: str = util.http_date(second)
    return date

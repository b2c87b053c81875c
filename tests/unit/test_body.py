"""A response body on its way from the upstream."""

import socket

import pytest

from app.upstream.body import Body
from app.upstream.connection import Connection
from app.upstream.head import HeadReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"


def test_a_body_that_was_closed_is_read_no_more():
    """006-W5: its descriptor may be somebody else's by then."""
    ours, theirs = socket.socketpair()
    with theirs:
        body = Body(Connection(ours, None), *HeadReader().feed(HEAD), print)
        pieces = body.stream()
        assert next(pieces) == b"abc"
        body.close()
        with pytest.raises(AssertionError, match="a closed body"):
            next(pieces)
        with pytest.raises(AssertionError, match="a closed body"):
            next(body.stream())

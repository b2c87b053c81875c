"""The bytes between two requests, on a clock of the test's own."""

import pytest

from app.errors import ApiError, IdleTooLong
from app.next_head import NextHead, Patience

GET = b"GET / HTTP/1.1\r\n"


def waits_for_head():
    return NextHead(Patience(idle_s=9, head_s=4, head_bytes=100, rest_bytes=0), 0.0)


def test_an_idle_connection_ends_in_time_though_bytes_come_without_a_pause():
    """002-R40: its time is over whether or not one of its waits is."""
    head = waits_for_head()
    assert head.take(b"\r\n", 8.0) == b"" and head.left_s(8.0) == 1
    with pytest.raises(IdleTooLong):
        head.left_s(9.0)


def test_a_head_is_late_though_bytes_come_without_a_pause():
    """002-R40"""
    head = waits_for_head()
    head.take(GET, 8.0)
    assert head.left_s(11.0) == 1
    head.take(b"a", 11.9)
    with pytest.raises(ApiError) as caught:
        head.left_s(12.0)
    assert caught.value.status == 408


@pytest.mark.parametrize("piece", [b"\r\n", b"\r\n" * 7])
def test_empty_lines_are_bounded_for_each_head(piece):
    """002-R40: 1 KiB"""
    head = waits_for_head()
    for _ in range(2):
        for _ in range(1024 // len(piece)):
            assert head.take(piece, 1.0) == b""
        assert head.take(GET, 1.0) == GET
        head.start(b"", 1.0)
    head.take(b"\r\n" * 512, 1.0)
    with pytest.raises(IdleTooLong):
        head.take(b"\r\n", 1.0)


def test_a_line_end_that_is_split_counts_once():
    """002-R40"""
    head = waits_for_head()
    for _ in range(512):
        assert head.take(b"\r", 1.0) == head.take(b"\n", 1.0) == b""
    assert head.take(GET, 1.0) == GET

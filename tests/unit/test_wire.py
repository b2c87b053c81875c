"""HTTP responses as bytes, in every split."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.upstream.head import Head, HeadReader, InvalidMessage, parse_head
from app.upstream.wire import ChunkedBody, LengthBody, UntilCloseBody, body_reader

PARTS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def chunked(parts, extension=b"", trailer=b""):
    return b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in parts) + (
        b"0%s\r\n%s\r\n" % (extension, trailer))


def cuts(data, places):
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in zip(bounds, bounds[1:])]


def read(reader, pieces):
    """Feed pieces as a connection would; return the body and how many pieces were needed."""
    body = b""
    for count, piece in enumerate(pieces, 1):
        body += reader.feed(piece)
        if reader.complete or reader.broken:
            return body, count
    return body, len(pieces)


@settings(max_examples=300)
@given(PARTS, st.lists(st.integers(0, 500), max_size=8),
       st.sampled_from([b"", b";a=b", b" ;x=\"y z\"", b";"]),
       st.sampled_from([b"", b"X-T: 1\r\n", b"A: b\r\nC: d\r\n"]), st.binary(max_size=3))
def test_a_chunked_body_comes_out_whole_however_it_is_split(
        parts, places, extension, trailer, surplus):
    """002-R15, 006-W9"""
    data = chunked(parts, extension, trailer)
    reader = ChunkedBody()
    body, _ = read(reader, cuts(data, places))
    assert body == b"".join(parts)
    assert reader.complete and not reader.broken and not reader.surplus
    joined = ChunkedBody()
    assert joined.feed(data + surplus) == b"".join(parts)
    assert joined.surplus is bool(surplus)


@given(PARTS, st.lists(st.integers(0, 500), max_size=8), st.integers(0, 500))
def test_a_chunked_body_that_ends_anywhere_early_is_never_complete(parts, places, end):
    """006-W4"""
    data = chunked(parts)
    data = data[:end % len(data)]
    reader = ChunkedBody()
    body, _ = read(reader, cuts(data, places))
    assert b"".join(parts).startswith(body)
    assert not reader.complete
    reader.end_of_stream()
    assert reader.broken and not reader.complete


@pytest.mark.parametrize("data, good", [
    (b"5\r\nhelloX", b"hello"), (b"5\r\nhello\r\n-1\r\n", b"hello"), (b"\r\n", b""),
    (b"g\r\n", b""), (b"0x5\r\nhello", b""), (b"5\nhello\r\n", b""), (b"1\r\na\n", b"a"),
    (b"11111111111111111\r\n", b""), (b"5 5\r\nhello", b""), (b"5;\x00\r\nhello", b""),
    (b"1\r\na\r\n" + b"5" * 5000, b"a"), (b"0\r\n" + b"X: y\r\n" * 4000, b""),
    (b"1\r\na\r\n0\r\nHTTP/1.1 200 OK\r\n", b"a"), (b"0\r\nX: \x00\r\n", b"")])
def test_bad_chunks_break_the_body_and_what_came_before_is_kept(data, good):
    """006-W8, 006-W10"""
    reader = ChunkedBody()
    assert reader.feed(data) == good
    assert reader.broken and not reader.complete
    for end in range(1, len(data) if len(data) < 100 else 1):
        split = ChunkedBody()
        assert split.feed(data[:end]) + (b"" if split.broken else split.feed(data[end:])) == good
        assert split.broken


def test_a_chunk_of_any_size_that_can_be_announced_is_read():
    """002-R15"""
    reader = ChunkedBody()
    assert reader.feed(b"ffffffffffffffff\r\nab") + reader.feed(b"\r\n") == b"ab\r\n"
    assert not reader.complete and not reader.broken


@given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=5), st.binary(max_size=3))
def test_a_body_of_known_length_ends_to_the_byte(body, places, surplus):
    """002-R15, 006-W9"""
    reader = LengthBody(len(body))
    assert reader.complete is (body == b"")
    if body:
        pieces = cuts(body, places)
        assert read(reader, [*pieces[:-1], pieces[-1] + surplus])[0] == body
        assert reader.complete and reader.surplus is bool(surplus)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 59))
def test_a_short_body_is_broken_and_not_complete(body, end):
    """006-W4"""
    reader = LengthBody(len(body))
    short = body[:end % len(body)]
    assert not short or reader.feed(short) == short
    reader.end_of_stream()
    assert reader.broken and not reader.complete


def test_until_close_ends_with_the_connection_which_is_not_used_again():
    """006-W9"""
    reader = UntilCloseBody()
    assert reader.feed(b"abc") == b"abc" and not reader.complete
    reader.end_of_stream()
    assert reader.complete and reader.surplus and not reader.broken


@pytest.mark.parametrize("head, expected", [
    (b"HTTP/1.1 200 OK\r\n\r\n", Head(200, 1, "OK", ())),
    (b"HTTP/1.1 200\r\n\r\n", Head(200, 1, "", ())),
    (b"HTTP/1.0 599 \r\nA:b\r\na: c \t\r\nE:\r\n\r\n",
     Head(599, 0, "", (("A", "b"), ("a", "c"), ("E", "")))),
    (b"HTTP/1.1 200 \xe9\r\nX: \xe9\r\n\r\n", Head(200, 1, "\xe9", (("X", "\xe9"),))),
])
def test_a_head_is_parsed_as_it_stands(head, expected):
    """002-R16"""
    assert parse_head(head) == expected


@pytest.mark.parametrize("head", [
    b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n", b"http/1.1 200 OK\r\n\r\n", b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\n\r\n\r\n", b"HTTP/1.1 200 O\x00K\r\n\r\n", b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\x7f\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA\xe9: b\r\n\r\n", b"HTTP/1.1 101 Switch\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\n\n", b"HTTP/1.1 200 OK\r\nA: b\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nA: b\r\n\r\n", b"HTTP/1.1 200 OK\r\n\n\r\n\r\n"])
def test_a_bad_head_is_no_response(head):
    """006-W8"""
    with pytest.raises(InvalidMessage):
        parse_head(head)


def seconds_for(head):
    started = time.process_time()
    with contextlib.suppress(InvalidMessage):
        parse_head(head)
    return time.process_time() - started


@pytest.mark.parametrize("line", [
    b"a" * 60_000, b"A:" + b" " * 60_000 + b"\x00", b"A:" + b" \t" * 30_000 + b"b\x00",
    b"A: " + b"b " * 30_000 + b"\x00"])
def test_a_bad_head_takes_no_longer_than_a_good_one_of_its_size(line):
    """006-W8"""
    start = b"HTTP/1.1 200 OK\r\n"
    good, bad = start + b"A: b\r\n" * 10_000 + b"\r\n", start + line + b"\r\n\r\n"
    assert len(parse_head(good).fields) == 10_000
    # A search that tries each beginning with each end takes thousands of times as long.
    assert seconds_for(bad) < 50 * seconds_for(good)


def framed(*fields, status=200, minor=1):
    return body_reader(Head(status, minor, "", fields))


@pytest.mark.parametrize("fields, kind", [
    ([("Content-Length", "5")], LengthBody), ([("content-length", "0")], LengthBody),
    ([("Transfer-Encoding", "Chunked")], ChunkedBody), ([], UntilCloseBody)])
def test_the_framing_chooses_the_reader(fields, kind):
    """002-R15"""
    assert type(framed(*fields)) is kind


@pytest.mark.parametrize("fields", [
    [("Content-Length", "5"), ("Content-Length", "5")], [("Content-Length", "5, 5")],
    [("Content-Length", "+5")], [("Content-Length", "5.0")], [("Content-Length", "")],
    [("Content-Length", "٥")], [("Content-Length", "9" * 19)],
    [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
    [("Transfer-Encoding", "identity")], [("Transfer-Encoding", "gzip, chunked")],
    [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
    [("Transfer-Encoding", "")]])
def test_framing_that_can_be_read_two_ways_is_refused(fields):
    """006-W8"""
    with pytest.raises(InvalidMessage):
        framed(*fields)


def test_chunked_is_refused_from_an_old_server_and_some_statuses_have_no_body():
    """006-W8"""
    with pytest.raises(InvalidMessage):
        framed(("Transfer-Encoding", "chunked"), minor=0)
    assert framed(status=204).complete and framed(("Content-Length", "9"), status=304).complete


@pytest.mark.parametrize("minor, fields, keeps", [
    (1, [], True), (1, [("Connection", "close")], False),
    (0, [("Connection", "keep-alive")], False),
    (1, [("Connection", "X"), ("connection", "Close")], False)])
def test_a_connection_is_kept_where_both_sides_agree(minor, fields, keeps):
    """006-W9"""
    assert Head(200, minor, "", tuple(fields)).keeps_alive is keeps


def head_of(size):
    """Return a whole head of so many bytes."""
    empty = b"HTTP/1.1 200 OK\r\nX: \r\n\r\n"
    return empty.replace(b"X: ", b"X: " + b"y" * (size - len(empty)))


@settings(max_examples=200)
@given(st.integers(0, 3), st.lists(st.integers(0, 400), max_size=8), st.binary(max_size=9))
def test_a_head_is_found_however_it_is_split_and_interim_ones_before_it_are_dropped(
        interim, places, behind):
    """006-W7"""
    final = b"HTTP/1.0 404 Not Found\r\nA: b\r\nC:\r\n\r\n"
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * interim + final
    reader, pieces = HeadReader(), cuts(data, places)
    assert not reader.has_begun
    for piece in pieces[:-1]:
        assert reader.feed(piece) is None and reader.has_begun
    head, rest = reader.feed(pieces[-1] + behind)
    assert (head.status, head.fields, rest) == (404, (("A", "b"), ("C", "")), behind)


@pytest.mark.parametrize("data, final", [
    (b"HTTP/1.1 ", False), (b"HTTP/1.1 1", False), (b"HTTP/1.1 2", True),
    (b"HTTP/1.1 100 Go on\r\n\r\n", False), (b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 4", True)])
def test_the_beginning_of_a_final_answer_is_told_from_an_interim_one(data, final):
    """002-R33"""
    reader = HeadReader()
    assert reader.feed(data) is None and reader.in_final is final


@pytest.mark.parametrize("data", [
    b"S", b"SSH-2.0-x\r\n", b"220 mail.test\r\n", b"<html>", b"ICY 200 OK\r\n", b"\r\n", b"\n",
    b"\x15\x03\x01\x00\x02\x02\x46", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"PRI * HTTP/2.0\r\n",
    b"http/1.1 200 OK", b"HTTP/2", b"HTTP/1.1\t", b"HTTP/1.1 0", b"HTTP/1.1 20x", b"HTTP/1.1 2000",
    b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200\n", b"HTTP/1.1 200 OK\r\nA: b\n", b"HTTP/1.1 200 OK\rA",
    b"HTTP/1.1 200 OK\r\nA\r\n", b"HTTP/1.1 200 OK\r\n A: b\r\n", b"HTTP/1.1 200 O\x00K\r\n",
    b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK\n"])
def test_what_can_be_no_head_is_refused_with_its_first_byte_that_shows_it(data):
    """006-W22"""
    reader = HeadReader()
    with pytest.raises(InvalidMessage):
        reader.feed(data)
    reader = HeadReader()
    with pytest.raises(InvalidMessage):
        for byte in data:
            reader.feed(bytes([byte]))


def test_a_head_has_at_most_64_KiB():
    """006-W8"""
    head, _ = HeadReader().feed(head_of(65_536))
    assert len(head.fields[0][1]) > 65_000
    for data in (head_of(65_537), head_of(65_537)[:65_536]):
        with pytest.raises(InvalidMessage):
            HeadReader().feed(data)
    reader = HeadReader()
    for _ in range(2):
        assert reader.feed(head_of(65_536).replace(b" 200 OK", b" 102 OK")) is None


def test_16_interim_responses_are_skipped_and_not_one_more():
    """006-W7"""
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    assert HeadReader().feed(interim * 16 + head_of(50))[0].status == 200
    with pytest.raises(InvalidMessage):
        HeadReader().feed(interim * 17)

"""The end of an event stream, however its bytes arrive."""

from hypothesis import given
from hypothesis import strategies as st

from app.routing.event_stream import StreamTail, is_event_stream, readable_type

DONE = b"data: [DONE]\n\n"


def is_done(stream, cuts=()):
    tail, places = StreamTail(), sorted({0, *cuts, len(stream)})
    for start, end in zip(places, places[1:]):
        tail.add(stream[start:end])
    return tail.is_done()


@given(before=st.binary(max_size=6000), after=st.integers(0, 4200),
       cuts=st.lists(st.integers(1, 9000), max_size=8))
def test_done_is_found_within_the_last_4_kib_however_the_stream_is_split(before, after, cuts):
    """006-W14"""
    before = before.replace(b"data", b"dato")
    stream = before + b"\n" + DONE + b"x" * after
    expected = len(DONE) + after <= 4096
    assert is_done(stream, [cut for cut in cuts if cut < len(stream)]) is expected


@given(st.binary(max_size=40))
def test_done_counts_only_as_a_line_of_its_own(before):
    """006-W14"""
    assert is_done(before + b"x" + DONE) is False
    assert is_done(before + b"\r" + DONE) is True


def test_what_is_remembered_of_a_stream_is_bounded():
    """006-W14"""
    tail = StreamTail()
    for _ in range(1000):
        tail.add(b"x" * 100)
    assert sum(map(len, tail._pieces)) <= 32 * 1024


def test_only_an_uncoded_2xx_of_its_type_is_an_event_stream():
    """006-W14"""
    kind = ("CONTENT-TYPE", "Text/Event-Stream; charset=utf-8")

    def is_stream(status, *fields):
        return is_event_stream(readable_type(status, fields))

    assert is_stream(200, kind) and is_stream(206, kind, ("a", "b"))
    assert is_stream(200, kind, ("Content-Encoding", "identity"))
    assert not is_stream(200, kind, ("content-encoding", "gzip"))
    assert not is_stream(404, kind) and not is_stream(200)
    assert not is_stream(200, ("Content-Type", "application/json"))
    for other in ("text/event-stream2", "text/event-streams; x=text/event-stream", "event-stream"):
        assert not is_stream(200, ("Content-Type", other))
    for spelled in ("text/event-stream", " TEXT/EVENT-STREAM ;charset=x", "text/event-stream;"):
        assert is_stream(200, ("Content-Type", spelled))


def test_the_end_of_a_2xx_of_json_is_worth_remembering():
    """008-R6"""
    kind = ("content-type", "Application/JSON; charset=utf-8")
    assert readable_type(200, [kind]) and not readable_type(400, [kind])
    assert not readable_type(200, [("Content-Type", "text/html")]) and not readable_type(200, [])

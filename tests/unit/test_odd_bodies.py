"""Bodies whose content takes long to look at: how long the event loop is held meanwhile."""

import time

import pytest

from app.routing.model_field import find_model
from app.routing.needs_reader import read_needs

SIZE = 8 * 1024 * 1024
START = b'{"model":"chutesai/AutoPilot","messages":['
# One pass over the densest of JSON takes six times as long as one over text.
MOST = 12


class Stopwatch:
    """Stands in for the pause; measures the processor time between two of them."""

    def __init__(self):
        self.longest_s, self.last = 0.0, time.thread_time()

    def __call__(self):
        now = time.thread_time()
        self.longest_s, self.last = max(self.longest_s, now - self.last), now


def full_of(item, start=b"", end=b""):
    count = (SIZE - len(START)) // (len(item) + 1)
    return START + start + b",".join([item] * count) + end + b"]}"


def text(escape):
    return START + b'{"content":"' + escape * (SIZE // len(escape)) + b'"}]}'


ODD = {
    "arrays": full_of(b"[]"), "objects": full_of(b"{}"), "strings": full_of(b'""'),
    "numbers": full_of(b"1"), "words": full_of(b"true"), "arrays in arrays": full_of(b"[[]]"),
    "deep arrays": full_of(b"[" * 100 + b"]" * 100),
    "messages": full_of(b'{"role":"user","content":"hello"}'),
    "parts": full_of(b'{"text":""}', b'{"content":[', b"]}"),
    "surrogates": text(b"\\ud800"), "large surrogates": text(b"\\uDfFf"),
    "escaped letters": text(b"\\u006d"), "quotes": text(b'\\"model\\"'),
    "line ends": text(b"\\n"), "two bytes a letter": text("\u00e9".encode()),
}


def longest_s(body):
    """Return the longest time between two pauses: the shortest of three."""
    took = []
    for _ in range(3):
        stopwatch = Stopwatch()
        read_needs(find_model(body, stopwatch).members, stopwatch)
        stopwatch()
        took.append(stopwatch.longest_s)
    return min(took)


@pytest.mark.parametrize("name", ODD)
def test_no_content_holds_the_event_loop_much_longer_than_plain_text(name):
    """006-W26"""
    assert longest_s(ODD[name]) < MOST * longest_s(text(b"x"))


def test_escapes_that_are_no_letters_spell_no_key():
    """002-R9: a surrogate elsewhere lets the syntax be checked without its escapes."""
    for key in (b"\\ud06dodel", b"\\uD06dodel", b"\\ud806\\u006fdel"):
        field = find_model(b'{"x":"\\ud800","model":"a","%s":"b"}' % key)
        assert field.model == "a"

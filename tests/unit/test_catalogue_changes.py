"""Changes of the catalogue, told once on a host whatever happens to the file of the workers."""

import logging
import pathlib

import pytest

from app.control.changes import CatalogueChanges
from app.routing.aliases import BUILT_IN
from app.routing.catalogue import Model
from app.routing.view import Views


class Host:
    """A host whose workers share a file; the clock stands until it is moved."""

    def __init__(self, folder, caplog):
        self.path, self.caplog, self.now = folder / "catalogue.json", caplog, 100.0
        caplog.set_level(logging.INFO)

    def worker(self):
        views = Views(lambda: self.now, lambda view: None, BUILT_IN, lambda: None)
        return CatalogueChanges(views, self.path)

    def take(self, worker, ids):
        """Have a worker take a catalogue; return what it says."""
        self.caplog.clear()
        self.now += 1.0
        worker.take([Model(name, b"{}") for name in ids], 0.0)
        return [(line.change, line.model) for line in self.caplog.records
                if line.message == "catalogue changed"]


@pytest.fixture
def host(tmp_path, caplog):
    return Host(tmp_path, caplog)


def killed_while_writing(path, data):
    with open(path, "w") as file:
        file.write(data[:len(data) // 2])
    raise SystemExit


def test_a_worker_killed_while_it_writes_leaves_what_it_had_to_say_to_the_next(host, monkeypatch):
    """003-R23"""
    one, two, three = host.worker(), host.worker(), host.worker()
    assert host.take(one, "ab") == host.take(two, "ab") == []
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(pathlib.Path, "write_text", killed_while_writing)
        host.take(one, "ac")
    assert host.take(three, "ac") == [("appeared", "c"), ("gone", "b")]
    assert host.take(two, "ac") == []


@pytest.mark.parametrize("content", ["", "null", "5", '{"taken_at": 1, "ids"', '{"ids": ["a"]}',
                                     '{"taken_at": "x", "ids": ["z"]}', None])
def test_a_damaged_file_loses_no_change_and_says_nothing_false(host, content):
    """003-R23: a worker then compares with what it knew itself."""
    one, two = host.worker(), host.worker()
    host.take(one, "ab")
    host.take(two, "ab")
    host.path.unlink() if content is None else host.path.write_text(content)
    assert host.take(host.worker(), "ab") == []
    host.path.unlink() if content is None else host.path.write_text(content)
    assert host.take(one, "bc") == [("appeared", "c"), ("gone", "a")]
    assert host.take(two, "bc") == []
    assert host.take(two, "b") == [("gone", "c")]


def test_a_file_that_cannot_be_written_puts_a_change_off(host, monkeypatch):
    """003-R23"""
    one = host.worker()
    host.take(one, "ab")
    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError()))
        assert host.take(one, "ac") == []
    assert host.take(one, "ac") == [("appeared", "c"), ("gone", "b")]

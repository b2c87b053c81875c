"""The handler that writes log lines."""

import contextlib
import logging
import os
import select
import socket

import pytest

from app import log_writer
from app.log_writer import LineHandler, write_waiting_lines

logger = logging.getLogger("app.test")


class Output:
    """A handler as a worker has it, and the other end of what it writes to."""

    def __init__(self, writing, reading):
        self.reading, self.due = reading, []
        self.stream = os.fdopen(writing, "w")
        self.handler = LineHandler(self.stream)
        self.handler.write_later(self.due.append)

    def turn(self):
        """End a turn of the event loop."""
        due, self.due[:] = list(self.due), []
        for function in due:
            function()

    def read(self):
        """Return what has come, write by write where they are kept apart."""
        came = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reading, 1 << 20):
                came.append(data)
        return came


def pipe():
    """Return the ends of a pipe."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    return writing, reading


def messages():
    """Return the ends of a socket that keeps writes apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    return ours.detach(), theirs.detach()


@pytest.fixture(params=[pipe, messages])
def output(request, monkeypatch):
    output = Output(*request.param())
    monkeypatch.setattr(logging.getLogger(), "handlers", [output.handler])
    output.keeps_apart = request.param is messages
    yield output
    output.handler.close()
    output.stream.close()
    os.close(output.reading)


def test_the_lines_of_a_turn_go_together_but_no_more_than_stay_whole(output):
    """001-R6"""
    for number in range(100):
        logger.warning("line %d %s", number, "x" * 90)
    assert output.read() == []
    output.turn()
    came = output.read()
    assert [line.split()[1] for line in b"".join(came).splitlines()] == [
        str(number).encode() for number in range(100)]
    assert 1 < len(came) < 5 and max(map(len, came)) <= select.PIPE_BUF or not output.keeps_apart


def test_lines_wait_for_a_reader_that_has_stopped_and_the_oldest_are_lost(output, monkeypatch):
    """001-R6"""
    monkeypatch.setattr(log_writer, "_MAX_WAITING_LINES", 50)
    for number in range(500):
        logger.warning("line %d %s", number, "x" * 4000)
        output.turn()
    came = b"".join(output.read())
    logger.warning("line 500")
    while output.handler._lines or output.due:
        output.turn()
        write_waiting_lines()
        came += b"".join(output.read())
    written = [int(line.split()[1]) for line in came.splitlines() if line.startswith(b"line ")]
    assert written == sorted(set(written)) and written[-51:] == list(range(450, 501))
    assert came.splitlines().count(b"lines lost") == 1
    assert len(written) < 501


def test_the_masters_pipe_keeps_waiting_for_others_and_for_us_it_does_not():
    """001-R6: whoever shares it has not asked for that."""
    writing, reading = pipe()
    output = Output(writing, reading)
    assert os.get_blocking(writing)
    for _ in range(100):
        output.handler.emit(logging.makeLogRecord({"msg": "x" * 4000}))
        output.turn()
    assert len(output.handler._lines) > 50
    output.handler.close()
    output.stream.close()
    os.close(reading)


def test_what_waits_in_the_master_is_not_written_by_its_workers_too(output):
    """001-R6"""
    output.handler.write_later(lambda flush: None)
    logger.warning("the master's")
    output.handler.write_later(output.due.append)
    logger.warning("the worker's")
    output.turn()
    assert b"".join(output.read()) == b"the worker's\n"

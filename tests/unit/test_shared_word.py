"""A number that processes share in memory."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from app.shared.word import SharedWord


def test_a_change_by_one_process_is_seen_by_another(tmp_path):
    """003-R40"""
    word = SharedWord(tmp_path / "word")
    before = word.value
    child = multiprocessing.get_context("fork").Process(
        target=SharedWord(tmp_path / "word").change)
    child.start()
    child.join()
    assert child.exitcode == 0 and word.value != before


def test_each_change_gives_a_value_that_never_was(tmp_path):
    """003-R40: with a counter two changes at once could be one"""
    words = [SharedWord(tmp_path / "word") for _ in range(2)]
    seen = {words[0].value}
    for number in range(100):
        words[number % 2].change()
        seen.add(words[0].value)
    assert len(seen) == 101


def test_a_removed_file_is_made_anew_and_shared_again(tmp_path):
    """003-R41, 007-R14"""
    one, two = SharedWord(tmp_path / "word"), SharedWord(tmp_path / "word")
    (tmp_path / "word").unlink()
    one.change()
    for word in (one, two):
        word.keep()
    two.change()
    assert one.value == two.value != 0


@pytest.mark.parametrize("trouble", ["no directory", "another's directory"])
def test_without_a_file_it_is_this_process_own(tmp_path, monkeypatch, trouble):
    """003-R41"""
    if trouble == "no directory":
        path = tmp_path / "missing" / "word"
    else:
        path = tmp_path / "word"
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    word = SharedWord(path)
    before = word.value
    word.change()
    assert word.value != before and not path.exists()
    word.keep()
    assert word.value != before


def test_a_full_file_system_is_no_sigbus():
    """003-R41, 007-R13"""
    script = """
import os, pathlib
from app.shared.word import SharedWord
folder = pathlib.Path("/dev/shm")
try:
    with open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
except OSError:
    word = SharedWord(folder / "word")
    word.change()
    assert word.value
    (folder / "filler").unlink()
    word.keep()
    assert SharedWord(folder / "word").value == word.value
    word.change()
    assert SharedWord(folder / "word").value == word.value
"""
    subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh", sys.executable, "-B", "-c",
         script], check=True, timeout=60)

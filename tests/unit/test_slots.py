"""Which worker has which slot."""

import os

import pytest

from app.shared import slots
from app.shared.slots import free_slots, take_slot


@pytest.fixture
def end_of(monkeypatch):
    """End a worker: `end_of(slot)` closes the slot's file, as the kernel does."""
    held, locked = {}, slots._lock

    def lock(path, **how):
        descriptor = locked(path, **how)
        if descriptor is not None:
            held[path.name] = descriptor
        return descriptor

    monkeypatch.setattr(slots, "_lock", lock)
    return lambda slot: os.close(held[f"slot-{slot}"])


def test_no_two_have_the_same_slot_and_the_lowest_free_one_is_taken(tmp_path, end_of):
    """001-R13"""
    assert [take_slot(tmp_path).number for _ in range(3)] == [0, 1, 2]
    end_of(1)
    assert [take_slot(tmp_path).number for _ in range(2)] == [1, 3]


def test_a_slot_is_free_when_its_worker_has_ended_and_not_while_it_is_looked_at(tmp_path, end_of):
    """001-R13"""
    for _ in range(3):
        take_slot(tmp_path)
    assert list(free_slots(tmp_path)) == []
    end_of(1)
    free = free_slots(tmp_path)
    assert next(free) == 1
    assert take_slot(tmp_path).number == 3
    assert list(free) == []
    assert take_slot(tmp_path).number == 1


def test_files_that_are_no_slots_and_slots_that_go_meanwhile_are_passed_over(
        tmp_path, end_of, monkeypatch):
    """001-R13"""
    for name in ("slot-", "slot-x", "slot--1", "slot-1 ", "slot-01", "slot-\u0663"):
        (tmp_path / name).touch()
    (tmp_path / "slot-7").mkdir()
    assert [take_slot(tmp_path).number for _ in range(3)] == [0, 1, 2]
    for slot in (0, 1, 2):
        end_of(slot)
    free = free_slots(tmp_path)
    assert next(free) == 0
    (tmp_path / "slot-1").unlink()
    assert list(free) == [2]
    assert not (tmp_path / "slot-1").exists()


def test_a_slot_knows_when_its_file_is_another(tmp_path):
    """007-R14"""
    mine = take_slot(tmp_path)
    assert mine.is_at(tmp_path)
    (tmp_path / "slot-0").unlink()
    assert not mine.is_at(tmp_path)
    assert take_slot(tmp_path, but_not={0}).number == 1
    assert take_slot(tmp_path).number == 0 and not mine.is_at(tmp_path)

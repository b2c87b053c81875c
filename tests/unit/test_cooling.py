"""The state machine of cooling: cases, and properties that hold whatever happens."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.routing.cooling import (HEALTHY, CoolingSettings, Outcome, after, cooling, forgotten_at,
                                 given_back, is_due, probed)

RULES = CoolingSettings(5.0, 60.0, 3)


def failed(record, now, began=None, random=0.0):
    return after(record, Outcome.FAILED, now if began is None else began, now, RULES,
                 lambda: random)


def succeeded(record, now):
    return after(record, Outcome.SUCCEEDED, now, now, RULES, lambda: 0.0)


def cooled(now, record=HEALTHY, random=0.0):
    while not cooling(record, now):
        record = failed(record, now, random=random)
    return record


def test_the_third_failure_in_a_row_cools():
    """003-R36"""
    record = failed(failed(HEALTHY, 1.0), 2.0)
    assert cooling(record, 2.0) == 0.0 and not is_due(record, 2.0, RULES)
    record = failed(record, 3.0)
    assert cooling(record, 3.0) == 5.0 and cooling(record, 7.0) == 1.0
    assert not is_due(record, 7.9, RULES) and is_due(record, 8.0, RULES)


def test_a_success_clears_the_row_and_ends_a_cooling():
    """003-R36"""
    record = succeeded(failed(failed(HEALTHY, 1.0), 2.0), 3.0)
    record = failed(failed(record, 4.0), 5.0)
    assert cooling(record, 5.0) == 0.0
    record = succeeded(cooled(10.0), 11.0)
    assert cooling(record, 11.0) == 0.0 and not is_due(record, 99.0, RULES)


def test_a_success_of_a_healthy_model_changes_nothing():
    """003-R36: nothing has to be written"""
    assert succeeded(HEALTHY, 1.0) is HEALTHY
    mild = succeeded(cooled(10.0), 20.0)
    assert mild.k and succeeded(mild, 30.0) is mild


def test_what_blames_nobody_changes_nothing():
    """003-R36"""
    for record in (HEALTHY, failed(HEALTHY, 1.0), cooled(1.0)):
        assert after(record, Outcome.NOTHING, 2.0, 2.0, RULES, lambda: 0.0) is record


def test_each_cooling_is_twice_as_long_up_to_the_longest():
    """003-R37"""
    now, record, took = 100.0, HEALTHY, []
    for _ in range(6):
        record = cooled(now, record)
        took.append(cooling(record, now))
        now = record.until
    assert took == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


@pytest.mark.parametrize(
    "minutes, seconds", [(0, 20.0), (0.9, 20.0), (1, 10.0), (2, 5.0), (9, 5.0)])
def test_a_minute_without_cooling_halves_the_next_one(minutes, seconds):
    """003-R37"""
    record = cooled(10.0)
    record = failed(record, 15.0)
    over = succeeded(record, record.until)
    now = record.until + 60 * minutes
    assert cooling(cooled(now, over), now) == seconds


def test_a_long_outage_is_over_as_soon_as_a_short_one():
    """003-R37"""
    record = HEALTHY
    for _ in range(50):
        record = cooled(record.until + 1.0, record)
    now = record.until + 4 * 60.0
    assert cooling(cooled(now, succeeded(record, record.until)), now) == 5.0


@given(random=st.floats(0.0, 1.0, exclude_max=True))
def test_a_cooling_is_up_to_a_fifth_shorter(random):
    """003-R37"""
    assert cooling(cooled(10.0, random=random), 10.0) == pytest.approx(5.0 * (1 - 0.2 * random))


def test_the_probes_failure_begins_the_next_cooling():
    """003-R38"""
    record = probed(cooled(10.0), 15.0, 8.0)
    assert cooling(record, 15.0) == 8.0 and not is_due(record, 15.0, RULES)
    assert cooling(failed(record, 16.0, began=15.0), 16.0) == 10.0


def test_another_requests_failure_is_the_probes_too():
    """003-R38"""
    record = probed(cooled(10.0), 15.0, 700.0)
    assert cooling(failed(record, 17.0, began=16.0), 17.0) == 10.0


def test_a_failure_that_began_before_the_cooling_was_over_is_no_news():
    """003-R38"""
    record = cooled(10.0)
    assert failed(record, 12.0, began=9.0) is record
    assert failed(record, 16.0, began=14.9) is record
    over = succeeded(record, 16.0)
    assert failed(over, 17.0, began=14.9) is over
    assert failed(over, 17.0, began=15.1).failures == 1


def test_a_probe_that_is_given_back_is_anothers():
    """003-R38"""
    record = probed(cooled(10.0), 15.0, 8.0)
    assert is_due(given_back(record, 23.0), 15.0, RULES)
    assert given_back(record, 22.0) is record
    assert not is_due(record, 22.9, RULES) and is_due(record, 23.0, RULES)


def test_a_record_is_forgotten_when_nothing_has_happened_for_ten_minutes():
    """003-R39"""
    assert forgotten_at(failed(HEALTHY, 7.0)) == 607.0
    assert forgotten_at(cooled(7.0)) == 612.0
    assert forgotten_at(probed(cooled(7.0), 12.0, 700.0)) == 1312.0


@given(first=st.floats(0.5, 200.0), most=st.floats(1.0, 200.0))
def test_no_setting_makes_a_cooling_too_long(first, most):
    """003-R37"""
    rules = CoolingSettings(first, most, 1)
    record = HEALTHY
    for _ in range(12):
        now = record.until
        record = after(record, Outcome.FAILED, now, now, rules, lambda: 0.0)
        assert cooling(record, now) <= most * 1.000001
    assert cooling(record, now) == pytest.approx(most)


class Host(RuleBasedStateMachine):
    """003-R36 to 003-R38: whatever clients do, one probe at a time, and a healthy model is free."""

    def __init__(self):
        super().__init__()
        self.now, self.record = 100.0, HEALTHY
        self.row = 0  # failures since the last success, of attempts that the record counts
        self.probe = None  # (began, probe_until)

    def take(self, outcome, began, random=0.5):
        self.record = after(self.record, outcome, began, self.now, RULES, lambda: random)

    @rule(age=st.sampled_from([0.0, 0.1, 3.0, 30.0]), random=st.floats(0, 0.99))
    def somebody_fails(self, age, random):
        before, began = self.record, self.now - age
        self.take(Outcome.FAILED, began, random)
        if began < before.until:
            assert self.record is before
        else:
            assert self.record.failures == before.failures + 1

    @rule()
    def somebody_succeeds(self):
        self.take(Outcome.SUCCEEDED, self.now)
        assert not self.record.failures and not cooling(self.record, self.now)
        assert not is_due(self.record, self.now, RULES)

    @rule(within_s=st.sampled_from([1.0, 10.0, 700.0]))
    def somebody_asks_for_the_probe(self, within_s):
        if is_due(self.record, self.now, RULES):
            assert self.probe is None or self.probe[1] <= self.now or (
                self.record.until > self.probe[0]), "two probes at once"
            self.record = probed(self.record, self.now, within_s)
            self.probe = (self.now, self.record.probe_until)
            assert not is_due(self.record, self.now, RULES)

    @precondition(lambda self: self.probe)
    @rule(how=st.sampled_from(["fails", "succeeds", "leaves", "killed"]))
    def the_probe_ends(self, how):
        began, until = self.probe
        self.probe = None
        if how == "fails":
            self.take(Outcome.FAILED, began)
        elif how == "succeeds":
            self.take(Outcome.SUCCEEDED, began)
        elif how == "leaves":
            self.record = given_back(self.record, until)
        else:
            self.now = max(self.now, until)

    @rule(seconds=st.sampled_from([0.01, 1.0, 5.0, 60.0, 1000.0]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def sound(self):
        record = self.record
        assert 0 <= record.k <= RULES.longest_k
        assert record.until <= self.now + RULES.most_s
        if record.failures < RULES.failures:
            assert not cooling(record, self.now)
        # Left alone it is always due in the end, or healthy.
        assert math.isfinite(forgotten_at(record))
        if record.failures >= RULES.failures:
            assert is_due(record, max(record.until, record.probe_until), RULES)


Host.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestHost = Host.TestCase

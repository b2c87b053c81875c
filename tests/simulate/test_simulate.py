"""The model itself, and the lines that must hold, in short runs."""

import dataclasses
import logging
import statistics
from xml.etree import ElementTree

import pytest

from tests.simulate import checks, load, world
from tests.simulate.picture import draw
from tests.simulate.policies import (BALANCED, BAND, BREAKS, BROKEN, BUDGET, COOLING, FIRST_ROW,
                                     OPEN, ORACLE, RANKED, STALENESS, UNIFORM)
from tests.simulate.run import Run
from tests.simulate.tally import Tally

STEADY = world.Scenario("steady", begins=60.0, ends=150.0, until=200.0)
HANGS = dataclasses.replace(STEADY, title="hangs", hangs=True)
FROZEN = world.Scenario("frozen", frozen=True, begins=60.0, ends=330.0, until=330.0)
EDGE = world.Scenario("edge down", edge_down=True, begins=60.0, ends=80.0, until=120.0)
BROWN_OUT = world.Scenario("brown-out", brown_out=0.5, rate=200.0, begins=5.0, ends=25.0,
                           until=25.0)
WITHOUT = {policy.broken: policy for policy in BROKEN}


@pytest.fixture(autouse=True)
def quiet():
    """Write no line for each cooling."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def ran(policy, scenario, share=0.1, replicas=2):
    return Run(policy, scenario, share, replicas, seed=1).finish()


def test_a_run_is_its_seed():
    """003-R70"""
    faulty = dataclasses.replace(STEADY, unavailable=0.3)
    first, second = ran(BALANCED, faulty, 0.05), ran(BALANCED, faulty, 0.05)
    assert first == second and first.sent > first.requests


def test_conversations_are_those_of_the_trace():
    """003-R70"""
    found = list(load.sessions(world.Scenario("long", until=8_000.0), 3.0, 4, seed=1))
    turns = [len(session.turns) for session in found]
    assert statistics.mean(turns) == pytest.approx(3.0, rel=0.1)
    assert turns.count(1) / len(turns) == pytest.approx(0.4, rel=0.1)
    assert {session.replica for session in found} == set(range(4))
    assert len({session.key for session in found}) == len(found)


def test_a_shared_key_is_one_client_unless_sessions_say_so():
    """003-R70"""
    for said, keys in ((False, 1), (True, 10)):
        scenario = world.Scenario("", shared_key=True, session_headers=said)
        found = load.sessions(scenario, 3.0, 1, seed=1)
        assert len({next(found).key for _ in range(10)}) == keys


def test_a_row_is_the_average_of_what_others_and_the_router_hold():
    """003-R70"""
    chute = world.Chute(0.0, "a", 2, 16, 0.25, [8.0] * 3600)
    for minute in range(60):
        chute.own = 0 if minute < 55 else 8
        for second in range(60):
            chute.observe(second, idle=False, refusing=0.0)
        row = chute.row(0.0)
    assert (row.utilization_current, row.utilization_5m) == (0.5, 0.5)
    assert row.utilization_15m == pytest.approx(0.25 + 0.25 / 3)
    assert row.utilization_1h == pytest.approx(0.25 + 0.25 / 12)
    assert row.rate_limit_ratio_5m == 0.0


def test_a_full_chute_refuses():
    """003-R70"""
    fleet = world.Fleet(STEADY, 0.1, 1)
    chute = fleet.best
    assert fleet.says(chute, 0.0, 0.5, 20_000) is world.Says.ANSWER
    assert fleet.says(chute, 0.0, 0.5, 2_000_000) is world.Says.TOO_LONG
    chute.own = chute.capacity
    assert fleet.says(chute, 0.0, 0.5, 20_000) is world.Says.FULL
    chute.observe(0.0, idle=False, refusing=0.0)
    assert chute.row(0.0).rate_limit_ratio_5m == 1 / 5


def test_what_a_tally_shows():
    """003-R70"""
    tally = Tally("a", {"a": 2.0, "b": 1.0}, requests=10, first=8)
    tally.failed[429] += 2
    tally.minutes[0].update(a=8, b=2)
    tally.minutes[1].update(a=5, b=5)
    tally.held_s.update(a=50.0, b=40.0)
    assert (tally.failures, tally.first_answers) == (0.2, 0.8)
    assert tally.swing == pytest.approx(0.3)
    assert tally.busiest == pytest.approx(40 / 30)
    # Three had failed at 12 s; one cooling began then and one at 30 s.
    tally.lost[0] = [(0.0, 10.0), (1.0, 11.0), (2.0, 12.0), (5.0, 15.0), (25.0, 30.0), (31.0, 40.0)]
    tally.coolings = {0: {"a": [12.0, 30.0]}}
    assert tally.lost_by_cooling == (4, 1)


def test_what_conversations_leave_behind():
    """003-R70"""
    calm, hanging = ran(FIRST_ROW, STEADY), ran(BALANCED, HANGS)
    assert (calm.moves, calm.first_answers, calm.hits) == (0, 1.0, 1.0)
    assert calm.held_s.total() / calm.requests == pytest.approx(load.mean_hold_s(STEADY), rel=0.1)
    assert 0 < hanging.moves < hanging.requests / 2
    assert 0.5 < hanging.first_answers < 1.0 and 0.5 < hanging.hits < 1.0


@pytest.mark.parametrize("scenario", [BROWN_OUT, EDGE, HANGS], ids=lambda scenario: scenario.title)
def test_at_the_end_of_a_run_nothing_is_held_or_open(scenario):
    """003-R70"""
    run = Run(BALANCED, dataclasses.replace(scenario, rate=20.0), 0.1, 2)
    run.finish()
    assert not any(chute.own for chute in run.fleet.chutes.values())
    assert not any(any(host.open_requests.counts().values()) for host in run.hosts)


def test_a_small_load_fails_no_more_than_at_the_first_row():
    """003-R71"""
    mine, first = ran(BALANCED, STEADY), ran(FIRST_ROW, STEADY)
    assert all(set(minute) == {first.best} for minute in first.minutes.values())
    assert mine.failures <= first.failures + 0.01 and mine.moves <= first.moves


def test_the_oracle_finds_a_free_slot_where_chance_does_not():
    """003-R70"""
    assert ran(ORACLE, STEADY, 0.2).failures == 0 < ran(UNIFORM, STEADY, 0.2).failures


@pytest.mark.parametrize("policy", [RANKED, BALANCED], ids=lambda policy: policy.name)
def test_a_hanging_chute_costs_a_replica_three_requests_in_a_cooling_and_more_without(policy):
    """003-R71, 003-R72"""
    assert ran(policy, HANGS).lost_by_cooling[1] <= 3
    without = dataclasses.replace(policy, cools=False, broken=COOLING)
    assert ran(without, HANGS).lost_by_cooling[1] > 3


def test_the_edge_is_no_matter_of_the_models():
    """003-R71"""
    mine = ran(BALANCED, EDGE)
    assert not any(mine.coolings.values()) and mine.most == 2
    assert ran(FIRST_ROW, EDGE).most > 2


def test_failover_does_not_become_the_load():
    """003-R71, 003-R72"""
    assert ran(BALANCED, BROWN_OUT, replicas=1).amplification < 1.35
    assert ran(WITHOUT[BUDGET], BROWN_OUT, replicas=1).amplification > 1.6


def test_own_open_requests_keep_a_chute_from_being_filled():
    """003-R72"""
    assert ran(BALANCED, STEADY, 0.3, replicas=1).failures < 0.01
    assert ran(WITHOUT[OPEN], STEADY, 0.3, replicas=1).failures > 0.05


def test_the_band_leaves_weak_chutes_alone():
    """003-R72"""
    assert ran(BALANCED, STEADY).weak < 0.05 < 0.5 < ran(WITHOUT[BAND], STEADY).weak


def test_a_frozen_feed_loses_its_say():
    """003-R72"""
    assert ran(BALANCED, FROZEN).busiest_shares[-1] < 0.6
    assert ran(WITHOUT[STALENESS], FROZEN).busiest_shares[-1] > 0.9


def test_each_line_is_asked_for_once_and_each_part_can_be_left_out():
    """003-R72"""
    assert len(set(checks.LINES + checks.ADDED)) == 11
    assert set(WITHOUT) == set(BREAKS) and len(BREAKS) == 5


def test_a_picture_is_svg_with_a_line_for_each_name():
    """003-R70"""
    svg = ElementTree.fromstring(draw("a & b", ["0", "1"], {"x": [0.0, 0.5], "y": [0.1, 0.2]}))
    assert len(svg.findall("{http://www.w3.org/2000/svg}polyline")) == 2

"""A short soak; `make soak` runs the long one with slowhttptest beside it."""

import asyncio

from tests.bench import network
from tests.bench.soak import soak
from tests.bench.soak_memory import filled


def test_hundreds_of_streams_aborted_by_either_side_lose_and_leave_nothing():
    """006-W13"""
    lines = []
    tally = asyncio.run(soak(900, attack_s=0, report=lines.append))
    assert not tally.bad, "\n".join(lines)
    assert tally.left == 300 and tally.complete + tally.cut + tally.errors == 600
    assert min(tally.complete, tally.cut, tally.errors) > 20


def test_faults_of_the_network_lose_no_request_but_those_under_way():
    """002-R30, 002-R31, 002-R32"""
    lines = []
    assert network.run(calm_s=3, silent_s=3, report=lines.append) == 0, "\n".join(lines)


def test_shared_memory_that_is_filled_and_removed_loses_nothing():
    """007-R13, 007-R14"""
    lines = []
    assert not filled(1, report=lines.append), "\n".join(lines)

"""A short overload; `make overload` runs the long one."""

import asyncio

from tests.bench.overload import CAPACITY, overload

SECONDS = 6


def test_at_twice_the_capacity_each_request_ends_well_while_workers_are_replaced():
    """007-R1, 007-R4, 007-R6"""
    lines = []
    tally = asyncio.run(overload(SECONDS, report=lines.append))
    assert not tally.bad, "\n".join(lines)
    assert tally.complete + tally.refused == SECONDS * 2 * CAPACITY
    assert min(tally.complete, tally.refused) > SECONDS * CAPACITY / 4
    assert tally.probes

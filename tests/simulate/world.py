"""The fleet: chutes, the load that others put on them, what breaks, and the feed that tells of it.

Nothing here depends on what a router does but `own`, the slots its requests hold. The background is
made before a run begins, so two routers that are given the same seed meet the same fleet.
"""

import collections
import dataclasses
import enum
import functools
import math
import random

from app.routing.catalogue import Model
from app.routing.ranking import UtilizationRow
from tests.support.feeds import public_names

# The real feed's shape: a few large chutes, many of two instances; the largest has a fifth of all.
SIZES = (10, 5, 4, 3, 3, 3) + 10 * (2,) + 4 * (1,)
# The instances of all 61 chutes of the real feed on a day in February 2026.
ALL_SIZES = (40, 14, 12, 12, 11, 10, 8, 7, 7, 6, 5, 4, 4, 4, 4, 4) + 45 * (2,)
SLOTS = (32, 16, 64, 16, 16)
# Mean utilization by others: the large chutes are half busy, most small ones idle, a few crowded.
LARGE_BUSY, SMALL_BUSY = (0.14, 0.5, 0.3, 0.48, 0.15, 0.6), (0.01, 0.04, 0.14, 0.3, 0.83)
CONTEXTS = (131_072, 163_840, 40_960, 202_752, 262_144)
# Seconds: how long a request of others holds a slot, and how slowly their demand drifts.
OTHERS_HOLD_S, DRIFT_S, DRIFT = 10.0, 600.0, 0.25
FEED_S = 60
# What a chute that hangs shows: nobody gets in, so it looks idle.
LOOKS_IDLE = 0.02


class Says(enum.Enum):
    """What an attempt meets."""

    ANSWER = 200
    TOO_LONG = 400
    FULL = 429
    UNAVAILABLE = 503
    NOTHING = "no headers"
    UNREACHABLE = "no connection"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens to the fleet, and to whom; times in seconds.

    halved .. brown_out  what happens between `begins` and `ends`, to the chute with the most free
                         slots, or to all where it is the edge, the feed or a brown-out
    prompts              tokens, least and most
    prefill              tokens a second that a chute reads of a prompt it does not have cached
    rate                 requests a second; 0: as many as the share says
    sizes                instances of each chute
    shared_key           one API key for everybody
    session_headers      each conversation says that it is one
    """

    title: str
    begins: float = 180.0
    ends: float = 480.0
    until: float = 600.0
    halved: bool = False
    frozen: bool = False
    hangs: bool = False
    unavailable: float = 0.0
    refusing: float = 0.0
    edge_down: bool = False
    brown_out: float = 0.0
    prompts: tuple[int, int] = (12_000, 32_000)
    prefill: float = 6_000.0
    rate: float = 0.0
    sizes: tuple[int, ...] = SIZES
    shared_key: bool = False
    session_headers: bool = True

    def now(self, time):
        """Say whether what breaks is broken."""
        return self.begins <= time < self.ends


class Chute:
    """A hosted model.

    demand  slots that others would hold, one figure a second
    own     slots that the router's requests hold
    """

    def __init__(self, share, name, size, slots, busy, demand):
        self.name, self.size, self.slots, self.busy, self.demand = name, size, slots, busy, demand
        self.instances, self.own = size, 0
        # Before the run the router's load was spread over all free slots.
        used = min(1.0, busy + share * (1 - busy))
        self.minutes = collections.deque(60 * [(used, 0.0)], maxlen=60)
        self._used = self._full = 0.0
        self._seconds = 0

    @property
    def capacity(self):
        """Return the slots of all instances."""
        return self.instances * self.slots

    def free(self, time):
        """Return the slots nobody holds; at most 0 when the chute is full."""
        return self.capacity - self.demand[int(time)] - self.own

    def observe(self, time, idle, refusing):
        """Take one second into the averages of the row."""
        free = self.free(time)
        self._used += LOOKS_IDLE if idle else min(1.0, 1 - free / self.capacity)
        self._full += refusing or (not idle and free < 1)
        self._seconds += 1

    def row(self, time):
        """Return what the feed says of this chute, and begin a new minute.

        The share of refused requests is the share of time in which a request would be refused.
        """
        used, full = (each / max(1, self._seconds) for each in (self._used, self._full))
        self.minutes.append((used, full))
        self._used, self._full, self._seconds = 0.0, 0.0, 0
        minutes = list(self.minutes)
        (u5, r5), (u15, r15), (u1h, r1h) = (
            [sum(each) / window for each in zip(*minutes[-window:])] for window in (5, 15, 60))
        return UtilizationRow(self.name, self.instances, used, u5, u15, u1h, r5, r15, r1h,
                              timestamp=time)


class Fleet:
    """All chutes under one scenario."""

    def __init__(self, scenario, share, seed):
        self.scenario = scenario
        self.chutes = {shape[0]: Chute(share, *shape) for shape in _shapes(seed, scenario.sizes)}
        self.best = max(self.chutes.values(),
                        key=lambda chute: chute.size * chute.slots * (1 - chute.busy))
        self.models = [Model(name, context_length=CONTEXTS[number % len(CONTEXTS)])
                       for number, name in enumerate(self.chutes)]
        self.contexts = {model.id: model.context_length for model in self.models}

    @property
    def free_slots(self):
        """Return the slots that others leave free in the mean."""
        return sum(c.size * c.slots * (1 - c.busy) for c in self.chutes.values())

    def observe(self, time):
        """Let one second pass for all rows."""
        broken = self.scenario.now(time)
        self.best.instances = self.best.size // (2 if broken and self.scenario.halved else 1)
        for chute in self.chutes.values():
            struck = broken and chute is self.best
            chute.observe(time, struck and self.scenario.hangs,
                          self.scenario.refusing if struck else 0.0)

    def rows(self, time):
        """Return the rows of the minute that ends now."""
        return tuple(chute.row(time) for chute in self.chutes.values())

    def says(self, chute, time, chance, tokens):
        """Return what an attempt meets.

        chance  0..1, drawn for it
        tokens  of prompt and answer
        """
        scenario = self.scenario
        if scenario.now(time):
            if scenario.edge_down:
                return Says.UNREACHABLE
            if chance < scenario.brown_out:
                return Says.UNAVAILABLE
            if chute is self.best:
                if scenario.hangs:
                    return Says.NOTHING
                if chance < scenario.unavailable:
                    return Says.UNAVAILABLE
                if chance < scenario.refusing:
                    return Says.FULL
        if tokens > self.contexts[chute.name]:
            return Says.TOO_LONG
        return Says.ANSWER if chute.free(time) >= 1 else Says.FULL


@functools.lru_cache(maxsize=4)
def _shapes(seed, sizes, seconds=1200):
    """Return name, size, slots, busy and demand of each chute."""
    draw, shapes = random.Random(seed), []
    for number, (name, size) in enumerate(zip(public_names(len(sizes)), sizes)):
        slots = SLOTS[number % len(SLOTS)]
        busy = LARGE_BUSY[number % len(LARGE_BUSY)] if size > 2 else draw.choice(SMALL_BUSY)
        shapes.append((name, size, slots, busy, _demand(draw, busy * size * slots, seconds)))
    return tuple(shapes)


def _demand(draw, mean, seconds):
    """Return a demand with the noise of arrivals and a slow drift around its mean."""
    keep, drift_keep = math.exp(-1 / OTHERS_HOLD_S), math.exp(-1 / DRIFT_S)
    noise, drift_noise = math.sqrt(1 - keep ** 2), math.sqrt(1 - drift_keep ** 2)
    drift, off, demand = draw.gauss(0, 1), draw.gauss(0, 1), []
    for _ in range(seconds):
        drift = drift_keep * drift + drift_noise * draw.gauss(0, 1)
        off = keep * off + noise * draw.gauss(0, 1)
        now = mean * math.exp(DRIFT * drift)
        demand.append(max(0.0, now + off * math.sqrt(now)))
    return demand

"""A replica: the router's own parts around one choice, as its factory puts them together."""

import collections

from app.config import load_config
from app.cooling.records import HostRecords
from app.cooling.session import Cooling
from app.open_requests import OpenRequests
from app.routing.conditions import Conditions
from app.routing.cooling import HEALTHY, CoolingSettings
from app.routing.failover_limits import Limits, RetryBudget
from app.routing.view import Views
from app.sticky.store import StickyChoice
from app.upstream.failover import Attempts
from tests.simulate.policies import BUDGET, OPEN, STALENESS

DEFAULTS = load_config({})
_FIRST_BYTE_TIMEOUT_S = DEFAULTS.upstream_first_body_byte_timeout_ms / 1000
_ALL_DAY_S = 86_400.0


class Kept:
    """A sticky store: a table in memory."""

    def __init__(self):
        self._models = {}

    def get(self, key):
        """Return the client's choice."""
        return StickyChoice(self._models.get(key))

    def put(self, key, model, choice, by_list=False):
        """Keep a choice."""
        self._models[key] = model

    def discard(self, key, choice):
        """Forget a choice."""
        if self._models.get(key) == choice.model:
            del self._models[key]


class Unlimited(RetryBudget):
    """No budget."""

    def take(self):
        """Let each attempt be made."""
        return True


class Host:
    """A replica with one worker.

    views          what its requests are routed by
    open_requests  of its own on each model
    store          of sticky choices
    cooling        what it remembers of the models
    attempts       its failover loop
    coolings       model -> when each of its coolings began
    """

    def __init__(self, number, policy, clock, send, draw):
        self.number, self._policy, self._clock = number, policy, clock
        self.views = Views(clock, lambda view: None, wall_clock=clock)
        self.open_requests = OpenRequests(self.views, None, clock)
        self.store, self._records = Kept(), HostRecords(None, clock)
        self.cooling = Cooling(
            self._records, CoolingSettings(DEFAULTS.cooldown_secs if policy.cools else 0.0),
            _FIRST_BYTE_TIMEOUT_S, clock, draw.random)
        unlimited = policy.original or policy.broken == BUDGET
        self.attempts = Attempts(
            send, _FIRST_BYTE_TIMEOUT_S,
            Limits(edge_failures=DEFAULTS.max_attempts + 1, budget_s=_ALL_DAY_S)
            if policy.original else Limits(),
            clock, retries=(Unlimited if unlimited else RetryBudget)(clock),
            on_capacity_429=policy.leaves_full)
        self.coolings, self._until = collections.defaultdict(list), {}

    def header_timeout_s(self, body_bytes):
        """Return the header deadline of a streamed request."""
        return DEFAULTS.header_timeout_s(True, 0 if self._policy.original else body_bytes)

    def conditions(self):
        """Return what the host has seen of the models."""
        broken, counts = self._policy.broken, self.open_requests.counts()
        age_s = self._clock() - self.views.current.snapshot.as_of
        return Conditions(self.cooling.conditions().cooling, {} if broken == OPEN else counts,
                          0.0 if broken == STALENESS else age_s)

    def note_cooling(self, model):
        """Take note if a cooling has begun."""
        until = self._records.all().get(model, HEALTHY).until
        if until > self._until.get(model, 0.0):
            self._until[model] = until
            self.coolings[model].append(self._clock())

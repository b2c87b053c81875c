"""The discrete-event model: replicas of the router before the fleet, one policy in one scenario."""

import heapq
import itertools
import random
from unittest import mock

from greenlet import getcurrent, greenlet

from app.routing import choice
from tests.simulate import load, world
from tests.simulate.conversation import Conversation
from tests.simulate.host import Host
from tests.simulate.tally import Tally

# A replica asks for the feed so often, and sees a new one up to so much later.
ASKS_S = 5.0


class Clock:
    """Simulated time, and who waits for it."""

    def __init__(self):
        self.now = 0.0
        self._events, self._order = [], itertools.count()
        self._loop = getcurrent()

    def time(self):
        """Return seconds since the beginning."""
        return self.now

    def sleep(self, seconds):
        """Let others run for so long; for greenlets."""
        self.at(self.now + seconds, getcurrent().switch)
        self._loop.switch()

    def at(self, time, call):
        """Have something called at a time."""
        heapq.heappush(self._events, (time, next(self._order), call))

    def run(self):
        """Let time pass until nobody waits for it."""
        while self._events:
            self.now, _, call = heapq.heappop(self._events)
            call()


class Run:
    """One policy in one scenario.

    share     of the free slots that the router's load takes
    replicas  of the router
    """

    def __init__(self, policy, scenario, share, replicas, seed=1):
        self.policy, self.scenario = policy, scenario
        self.clock, self.fleet = Clock(), world.Fleet(scenario, share, seed)
        self.tally = Tally(self.fleet.best.name, {
            chute.name: chute.size * (1 - chute.busy) for chute in self.fleet.chutes.values()})
        self.draw = random.Random(seed)
        self.hosts = [Host(number, policy, self.clock.time, self._send, self.draw)
                      for number in range(replicas)]
        rate = scenario.rate or share * self.fleet.free_slots / load.mean_hold_s(scenario)
        self._sessions = load.sessions(scenario, rate, replicas, seed)

    def finish(self):
        """Let it all happen.

        Returns  Tally
        Cost     100 to 300 µs for each request of a client
        """
        for second in range(int(self.scenario.until)):
            self.clock.at(second + 0.5, self._observe)
        for minute in range(0, int(self.scenario.until), world.FEED_S):
            self.clock.at(minute, self._publish)
        for host in self.hosts:
            host.views.take_models(self.fleet.models)
        self._next_session()
        band = choice._BAND_SHARE if self.policy.band is None else self.policy.band
        with mock.patch.object(choice, "_BAND_SHARE", band):
            self.clock.run()
        self.tally.coolings = {host.number: host.coolings for host in self.hosts}
        return self.tally

    def _send(self, path, model, conversation, timeout_s):
        return conversation.send(model, timeout_s)

    def _next_session(self):
        session = next(self._sessions, None)
        if session is not None:
            self.clock.at(session.begins, lambda: self._begin(session))

    def _begin(self, session):
        self._next_session()
        greenlet(Conversation(self, session).talk).switch()

    def _observe(self):
        self.fleet.observe(self.clock.now)

    def _publish(self):
        now = self.clock.now
        if self.scenario.frozen and self.scenario.now(now):
            return
        rows = self.fleet.rows(now)
        for host in self.hosts:
            self.clock.at(now + (self.draw.uniform(0, ASKS_S) if now else 0.0),
                          lambda host=host: host.views.take_rows(rows))

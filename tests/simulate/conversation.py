"""One conversation in a run: it asks, waits for its answer, thinks, and asks again.

It runs as a greenlet. Each turn goes through the router's own failover loop, `Attempts.run`. The
transport of that loop is the fleet: where the real one waits for a socket, this one puts the
greenlet on the heap of events and lets the next one run.
"""

from app.errors import ApiError
from app.open_requests import OpenRequest
from app.routing.needs import Needs
from app.routing.outcomes import Failure, UpstreamFailed
from app.sticky.session import ClientStickiness
from app.upstream.failover import Prepared
from tests.simulate.load import BYTES_A_TOKEN, CACHED_S
from tests.simulate.policies import Moment
from tests.simulate.world import FEED_S, Says

# A refusal comes after a round trip.
REFUSAL_S = 0.1


class Answer:
    """An upstream's response, as far as failover looks at it."""

    fields, resent = (("content-type", "application/json"),), False

    def __init__(self, says):
        self.status = says.value

    def first_chunk(self, timeout_s):
        """Return the first byte, which comes with the headers."""
        return b"d"

    def peek(self, most):
        """Return the body of a refusal."""
        return b'{"detail": "Infrastructure is at maximum capacity, try again later"}'

    def close(self):
        """Do nothing."""


class Conversation:
    """One conversation on its replica; an observer of its own attempts."""

    def __init__(self, run, session):
        self.run, self.session = run, session
        self.host = run.hosts[session.replica]
        self._open = OpenRequest(self.host.open_requests)
        self._turn = None
        # When its last attempt began, how many its turn has had, and whether the tally counts it.
        self._began, self._attempts, self._counts = 0.0, 0, False
        # Model -> when it last answered; and the last that did.
        self._known, self._last = {}, None

    def talk(self):
        """Take one turn after the other."""
        for self._turn in self.session.turns:
            now = self.run.clock.now
            if now >= self.run.scenario.until:
                return
            self._attempts, self._counts = 0, now >= self.run.scenario.begins
            committed = self._asked(now)
            if committed is not None and committed.response.status == Says.ANSWER.value:
                self.run.clock.sleep(self._turn.answer_s)
                self._leave(committed.model)
            self.run.clock.sleep(self._turn.think_s)

    def _asked(self, now):
        run, host, key = self.run, self.host, self.session.key
        sticky = ClientStickiness(host.store, key, host.store.get(key))
        conditions = host.conditions()
        decision = run.policy.order(Moment(
            run.fleet, now, run.draw, host.views.current, Needs(context=self._turn.tokens),
            sticky.caller(now), conditions))
        sticky.kept = decision.keep
        if self._counts:
            run.tally.requests += 1
            run.tally.minutes[int(now // FEED_S)][decision.candidates[0]] += 1
        size = self._turn.prompt * BYTES_A_TOKEN
        prepared = Prepared(
            "", body_for=lambda model: model, headers=self, came_at=now, body_bytes=size,
            header_timeout_s=host.header_timeout_s(size), chosen_here=True, begun=self._open.begin)
        cooling = host.cooling.for_request(
            conditions, host.views.current, prepared.header_timeout_s)
        try:
            committed = host.attempts.run(decision.candidates, prepared, (cooling, sticky, self),
                                          cooling.may_try, (sticky.passed_over,))
        except ApiError as error:
            self._note(error.code, None)
            return None
        self._note(committed.response.status, committed.model)
        return committed

    def send(self, model, timeout_s):
        """Be the transport of one attempt."""
        run, clock = self.run, self.run.clock
        self._began = clock.now
        self._attempts += 1
        chute = run.fleet.chutes[model]
        says = run.fleet.says(chute, clock.now, run.draw.random(), self._turn.tokens)
        if says is Says.ANSWER:
            chute.own += 1
            reading_s = self._uncached(model) / run.scenario.prefill
            clock.sleep(min(reading_s, timeout_s))
            if reading_s <= timeout_s:
                return Answer(says)
            self._leave(model)
            raise UpstreamFailed(Failure.HEADER_TIMEOUT, "")
        clock.sleep(timeout_s if says is Says.NOTHING else REFUSAL_S)
        self._open.end()
        if says is Says.NOTHING:
            run.tally.lost[self.host.number].append((self._began, clock.now))
            raise UpstreamFailed(Failure.HEADER_TIMEOUT, "")
        if says is Says.UNREACHABLE:
            raise UpstreamFailed(Failure.UNREACHABLE, "")
        return Answer(says)

    def attempted(self, attempt):
        """Take note of an attempt; failover calls this."""
        self.host.note_cooling(attempt.model)
        if self._counts:
            self.run.tally.sent += 1
            if attempt.failure is not None:
                self.run.tally.lost_s += attempt.duration_ms / 1000

    def _uncached(self, model):
        """Return the tokens that a model has to read."""
        prompt = self._turn.prompt
        cached = prompt * self.session.cached
        hit = self.run.clock.now - self._known.get(model, -CACHED_S) < CACHED_S
        if self._counts and self._known:
            self.run.tally.cacheable += cached
            self.run.tally.cached += cached * hit
        return prompt - cached * hit

    def _leave(self, model):
        self.run.fleet.chutes[model].own -= 1
        self._open.end()
        if self._counts:
            self.run.tally.held_s[model] += self.run.clock.now - self._began

    def _note(self, status, model):
        run, tally, answered = self.run, self.run.tally, status == Says.ANSWER.value
        if answered and model == run.fleet.best.name and self._began >= run.scenario.ends:
            tally.back.setdefault(self.host.number, self._began)
        if self._counts:
            tally.most = max(tally.most, self._attempts)
            tally.first += answered and self._attempts == 1
            tally.moves += answered and self._last not in (None, model)
            tally.failed[status] += not answered
        if answered:
            self._known[model], self._last = run.clock.now, model

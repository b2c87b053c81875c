"""What a run shows."""

import bisect
import collections
import dataclasses

from app.routing.cooling import CoolingSettings

_FAILURES = CoolingSettings().failures


@dataclasses.dataclass
class Tally:
    """What a run shows of the requests that began after the warm-up.

    best       name of the chute that what breaks strikes
    free       model -> instances that others leave free in the mean
    first      requests that their first candidate answered
    sent       attempts upstream
    most       attempts of one request
    moves      requests answered by another model than the conversation's last
    lost_s     time spent in attempts that failed
    cached     tokens of prompts that a model had cached
    cacheable  and those it would have if no conversation ever moved
    failed     status or code -> requests that ended in it
    minutes    number of the feed -> model -> requests that it was the first candidate of
    held_s     model -> seconds that slots were held
    lost       replica -> when each attempt began and ended that hung
    back       replica -> when the best chute first answered again after it had been broken
    coolings   replica -> model -> when each cooling began
    """

    best: str
    free: dict
    requests: int = 0
    first: int = 0
    sent: int = 0
    most: int = 0
    moves: int = 0
    lost_s: float = 0.0
    cached: float = 0.0
    cacheable: float = 0.0
    failed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    minutes: dict = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.Counter))
    held_s: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lost: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    back: dict = dataclasses.field(default_factory=dict)
    coolings: dict = dataclasses.field(default_factory=dict)

    @property
    def failures(self):
        """Return the part of the requests that got no answer of a model."""
        return self.failed.total() / self.requests

    @property
    def first_answers(self):
        """Return the part of the requests that their first candidate answered."""
        return self.first / self.requests

    @property
    def amplification(self):
        """Return requests upstream for each of the clients'."""
        return self.sent / self.requests

    @property
    def hits(self):
        """Return the part of the tokens that could be cached that were."""
        return self.cached / self.cacheable

    @property
    def lost_s_per_1000(self):
        """Return seconds spent in vain for each thousand requests."""
        return 1000 * self.lost_s / self.requests

    @property
    def busiest_shares(self):
        """Return, for each feed, the share of the requests that the busiest chute got."""
        return [max(minute.values()) / minute.total() for minute in self.minutes.values()]

    @property
    def swing(self):
        """Return the most by which a busiest chute's share differs from the feed before."""
        minutes = list(self.minutes.values())
        return max((abs(now[busiest] / now.total() - before[busiest] / before.total())
                    for before, now in zip(minutes, minutes[1:])
                    for busiest in (max(now, key=now.get), max(before, key=before.get))),
                   default=0.0)

    @property
    def weak(self):
        """Return the share of chutes with less than a quarter of the best one's free instances."""
        weak = {name for name, free in self.free.items() if free < max(self.free.values()) / 4}
        return sum(minute[name] for minute in self.minutes.values()
                   for name in weak) / self.requests

    @property
    def busiest(self):
        """Return the load of the busiest chute in use over the mean of these, by free instance.

        A chute that a hundredth of the requests do not go to is not in use.
        """
        asked = sum(self.minutes.values(), collections.Counter())
        used = [model for model in asked if asked[model] > asked.total() / 100]
        mean = sum(self.held_s[m] for m in used) / sum(self.free[m] for m in used)
        return max(self.held_s[m] / self.free[m] for m in used) / mean

    @property
    def lost_by_cooling(self):
        """Return how many requests of one replica hung, in its worst case.

        Returns  those that began before it had seen enough failures to cool, and those of the
                 cooling with most; without a cooling all later ones
        """
        before, most = 0, 0
        for replica, hung in self.lost.items():
            seen = sorted(ended for _, ended in hung)[:_FAILURES][-1]
            later = [began for began, _ in hung if began > seen]
            begun = self.coolings[replica][self.best]
            each = collections.Counter(bisect.bisect_right(begun, began) for began in later)
            before, most = max(before, len(hung) - len(later)), max(most, *each.values(), 0)
        return before, most

"""Puts the models that an alias may choose in order for one request.

What does not depend on the moment is a `Lineup`, made once for each alias and each kind of needs of
a view. A quiet moment and ALIAS_CHOICE=ranked cost nothing beyond it.

With ALIAS_CHOICE=balanced the models whose free capacity is not far from the best one's share the
clients. They do so by weighted rendezvous hashing: for each client each of them draws a time from
an exponential distribution whose rate is its weight, and the earliest is tried first. So a client
gets the same model from everybody who knows its key, shares follow the weights, and a model that
goes moves only its own clients.

Source: specs/003 R22, R45-R48, R60; https://www.rfc-editor.org/rfc/rfc2991 (highest random weight).
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from app.routing.aliases import Pool
from app.routing.conditions import Conditions
from app.routing.needs import Fit, Needs, fit
from app.routing.ranking import Candidate, no_pause

# A feed is a minute old as a rule. At this age its figures begin to lose weight, and after so many
# seconds more they have none: only the size of a chute then counts.
_FRESH_S = 120.0
_FADES_IN_S = 180.0
# An instance takes at least so many requests at a time.
_REQUESTS_AN_INSTANCE = 32
# What a chute counts for that has no free capacity, and one of which nothing is known any more, in
# shares of its instances.
_LEAST_SHARE, _BLIND_SHARE = 0.01, 0.5
# The band begins at this share of the best; at half of it when the feed says nothing any more.
_BAND_SHARE = 0.5
_RANDOM_BITS = 53
# Of more models than this the others keep the order of the ranking: each costs a request 2 µs.
_MOST_WEIGHED = 512
# Comparisons of a model with needs between two pauses; they take about 1 ms.
_PER_SLICE = 512


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A model of a lineup, and what orders it.

    candidate  what the ranking knows of it
    tier       number of its tier, from 0
    fit        whether it declares what the request needs
    missing    what it declares itself without
    """

    candidate: Candidate
    tier: int
    fit: Fit
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the model id."""
        return self.candidate.name

    @property
    def group(self) -> tuple[bool, int, bool]:
        """Return what counts before the choice among equals; less comes first."""
        return self.fit is Fit.NO, self.tier, self.fit is Fit.UNKNOWN


class Order(NamedTuple):
    """A lineup as one request finds it.

    names        model ids, the first to be tried first
    band         those among which clients are shared out; none where the ranking orders
    cooling      those that are moved behind all others
    passed_over  those of them that would have stood before the first one
    """

    names: tuple[str, ...]
    band: frozenset[str] = frozenset()
    cooling: frozenset[str] = frozenset()
    passed_over: tuple[str, ...] = ()


class _Group(NamedTuple):
    """The models of a lineup that are equal but for the choice, best ranked first.

    weights  in a fresh feed; none where the models keep their order
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    instances: tuple[int, ...]

    def part(self, cooling: frozenset[str], cold: bool) -> "_Group":
        """Return those that cool, or those that do not."""
        if cooling.isdisjoint(self.names):
            return _Group((), (), ()) if cold else self
        wanted = [(name in cooling) is cold for name in self.names]
        return _Group(tuple(itertools.compress(self.names, wanted)),
                      tuple(itertools.compress(self.weights, wanted)),
                      tuple(itertools.compress(self.instances, wanted)))


@dataclasses.dataclass(frozen=True)
class Lineup:
    """The models an alias may choose, in the order of one kind of needs and the ranking."""

    standings: tuple[Standing, ...] = ()

    @functools.cached_property
    def ranked(self) -> Order:
        """Return the order of a quiet moment with ALIAS_CHOICE=ranked."""
        return Order(tuple([standing.name for standing in self.standings]))

    @functools.cached_property
    def by_name(self) -> Mapping[str, Standing]:
        """Return the standings by model id."""
        return {standing.name: standing for standing in self.standings}

    @functools.cached_property
    def _groups(self) -> list[_Group]:
        return _grouped(self.standings)

    def order(self, conditions: Conditions, client_key: str | None = None) -> Order:
        """Return the models in the order to try them for one request.

        conditions  of the moment
        client_key  whom equals are shared out to; None: the ranking orders them
        Returns     Order; the same arguments give the same order
        Cost        nothing when ranked and nothing cools; else O(n log n), no I/O: balanced, 60
                    chutes take some 50 µs

        Source: specs/003 R45, R46, R60.
        """
        cooling = self._cooling(conditions)
        if not cooling:
            if client_key is None:
                return self.ranked
            return _balanced(self._groups, conditions, client_key)
        if client_key is None:
            order = Order(tuple(sorted(self.ranked.names, key=cooling.__contains__)))
        else:
            order = _balanced([group.part(cooling, cold) for cold in (False, True)
                               for group in self._groups], conditions, client_key)
        without = self.order(dataclasses.replace(conditions, cooling={}), client_key).names
        ahead = without[:without.index(order.names[0])]
        return order._replace(cooling=cooling,
                              passed_over=tuple([name for name in ahead if name in cooling]))

    def _cooling(self, conditions: Conditions) -> frozenset[str]:
        """Return which of the models are cooling; none where that is no matter of the models."""
        if not conditions.cooling:
            return frozenset()
        cooling = frozenset(conditions.cooling.keys() & self.by_name.keys())
        return frozenset() if 2 * len(cooling) > len(self.standings) else cooling


def line_up(pool: Pool, needs: Needs, pause: Callable[[], None] = no_pause) -> Lineup:
    """Put the chutes of an alias in the order of one kind of needs and the ranking.

    pause  called after each slice of chutes to let others run
    Cost   100 µs for 60 chutes, no I/O

    Source: specs/003 R22.
    """
    groups = dict[tuple[bool, int, bool], list[Standing]]()
    for number, member in enumerate(pool.members, 1):
        standing = Standing(member.candidate, member.tier, *fit(needs, member.model))
        groups.setdefault(standing.group, []).append(standing)
        if number % _PER_SLICE == 0:
            pause()
    return Lineup(tuple(itertools.chain(*[groups[group] for group in sorted(groups)])))


def staleness(feed_age_s: float) -> float:
    """Return how little a feed of this age says: 0 up to 120 s, 1 from 300 s on."""
    return min(max((feed_age_s - _FRESH_S) / _FADES_IN_S, 0.0), 1.0)


def _grouped(standings: Iterable[Standing]) -> list[_Group]:
    groups = dict[tuple[bool, int, bool], list[Candidate]]()
    for standing in standings:
        groups.setdefault(standing.group, []).append(standing.candidate)
    weighed = list[_Group]()
    for group in groups.values():
        head, tail = group[:_MOST_WEIGHED], group[_MOST_WEIGHED:]
        weighed.append(_Group(tuple([each.name for each in head]),
                              tuple([_weight(each) for each in head]),
                              tuple([each.instances for each in head])))
        if tail:
            weighed.append(_Group(tuple([each.name for each in tail]), (), ()))
    return weighed


def _weight(candidate: Candidate) -> float:
    return max(candidate.parts.score, _LEAST_SHARE * candidate.instances)


def _balanced(groups: list[_Group], conditions: Conditions, client_key: str) -> Order:
    names, band = list[str](), list[str]()
    for group in groups:
        if not group.weights:
            names += group.names
            continue
        ordered, banded = _balanced_group(group, conditions, client_key)
        names += ordered
        band += ordered[:banded]
    return Order(tuple(names), frozenset(band))


def _balanced_group(group: _Group, conditions: Conditions,
                    client_key: str) -> tuple[Sequence[str], int]:
    """Return the model ids of a group in order, and how many of the first are its band."""
    names, weights = group.names, group.weights
    stale, open_requests = staleness(conditions.feed_age_s), conditions.open_requests
    if stale:
        weights = tuple([(1 - stale) * weight + stale * _BLIND_SHARE * instances
                         for weight, instances in zip(weights, group.instances)])
    values = [weight - open_requests.get(name, 0) / _REQUESTS_AN_INSTANCE
              for name, weight in zip(names, weights)]
    best = max(values)
    # With more open than any of them is thought to have room for, the share is above the best.
    least = min(_BAND_SHARE * (1 - stale / 2) * best, best)
    band = [place for place, value in enumerate(values) if value >= least]
    if band == [0]:
        return names, 1
    times = [(_arrival(client_key, names[place], weights[place]), place) for place in band]
    rest = [(-value, place) for place, value in enumerate(values) if value < least]
    return [names[place] for _, place in (*sorted(times), *sorted(rest))], len(band)


def _arrival(client_key: str, model: str, weight: float) -> float:
    """Return what a model draws for a client: exponentially distributed, the weight its rate."""
    digest = hashlib.blake2b(f"{client_key}\0{model}".encode(), digest_size=8).digest()
    # Between 0 and 1, neither of them.
    drawn = ((int.from_bytes(digest) >> (64 - _RANDOM_BITS)) + 0.5) / 2 ** _RANDOM_BITS
    return -math.log(drawn) / weight

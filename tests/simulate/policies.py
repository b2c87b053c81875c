"""Who chooses: the router's own decision, and what it is measured against.

The router's own orders are made by `decide`: what is judged here is the code that routes requests.
The others have an order of their own and share the rest of the router.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import NamedTuple

from app.routing.conditions import Conditions
from app.routing.decision import Asked, Caller, Decision, Mode, Rules, decide
from app.routing.needs import Needs
from app.routing.view import View
from tests.simulate.world import Fleet

ALIAS = "chutesai/AutoPilot"
_ASKED = Asked(Mode.ALIAS, (ALIAS,), needs_count=True)


class Moment(NamedTuple):
    """What an order is made from.

    fleet  as it is at this very second, which only the oracle may ask for slots
    draw   chance
    view   of the replica
    """

    fleet: Fleet
    time: float
    draw: random.Random
    view: View
    needs: Needs
    caller: Caller
    conditions: Conditions


@dataclasses.dataclass(frozen=True)
class Policy:
    """A way to choose, and what the router does around it.

    order     Moment -> Decision
    original  header deadlines are fixed, and failover has no budget and no rule for the edge
    cools     models that fail are set aside
    leaves_full  a model that is full is left for the next, FAILOVER_ON_CAPACITY_429
    broken    what of `balanced` is left out on purpose, or nothing; one of BREAKS
    band      a chute is in the band from this share of the best one's value; None: the router's own
    """

    name: str
    order: Callable[[Moment], Decision]
    original: bool = False
    cools: bool = False
    leaves_full: bool = False
    broken: str = ""
    band: float | None = None


def _ours(rules):
    return lambda moment: decide(moment.view, _ASKED, moment.needs, moment.caller, rules,
                                 moment.conditions)


def _by(names):
    """Return an order of which the sticky choice comes first, as in the original."""
    def order(moment):
        ordered, choice = names(moment), moment.caller.choice
        if choice is None:
            return Decision(Mode.ALIAS, tuple(ordered), "miss")
        return Decision(Mode.ALIAS, (choice, *[n for n in ordered if n != choice]), "hit")
    return order


def _first_row(moment):
    return moment.view.pool(ALIAS).names


def _uniform(moment):
    names = list(_first_row(moment))
    moment.draw.shuffle(names)
    return names


def _by_size(moment):
    sizes = {name: chute.size for name, chute in moment.fleet.chutes.items()}
    return sorted(sizes, key=lambda name: moment.draw.expovariate(sizes[name]))


def _most_free(moment):
    """Keep a conversation where it is while there is a free slot; else where most are."""
    free = {name: chute.free(moment.time) for name, chute in moment.fleet.chutes.items()}
    own = moment.caller.choice
    return Decision(Mode.ALIAS, tuple(sorted(
        free, key=lambda name: (name != own or free[name] < 1, -free[name]))), "hit")


FIRST_ROW = Policy("first row", _by(_first_row), original=True)
UNIFORM = Policy("uniform", _by(_uniform))
BY_SIZE = Policy("by size", _by(_by_size))
RANKED_WARM = Policy("ranked, no cooling", _ours(Rules()))
RANKED = Policy("ranked", _ours(Rules()), cools=True)
BALANCED_WARM = Policy("balanced, no cooling", _ours(Rules(balanced=True)))
BALANCED = Policy("balanced", _ours(Rules(balanced=True)), cools=True)
LEAVING = Policy("balanced, 429 moves on", _ours(Rules(balanced=True)), cools=True,
                 leaves_full=True)
ORACLE = Policy("oracle", _most_free)
POLICIES = (FIRST_ROW, UNIFORM, BY_SIZE, RANKED_WARM, RANKED, BALANCED_WARM, BALANCED, LEAVING,
            ORACLE)

OPEN, BAND, STALENESS, BUDGET, COOLING = BREAKS = (
    "no own open requests", "a band of everything", "no staleness", "no budget", "no cooling")
BROKEN = tuple(dataclasses.replace(BALANCED, name=f"balanced, {what}", broken=what,
                                   cools=what != COOLING, band=0.0 if what == BAND else None)
               for what in BREAKS)
# Where the band may begin; the first is what it is.
BANDS = tuple(dataclasses.replace(BALANCED, name=f"from {part} of the best", band=part)
              for part in (0.5, 0.25, 0.1))

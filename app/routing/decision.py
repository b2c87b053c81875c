"""Decides where a request goes.

Source: specs/002 R4-R7, R51, specs/003 R45, R60, specs/004 R1-R6, specs/005 R3, R15, R16.
"""

import dataclasses
import enum
from typing import NamedTuple

from app.errors import ApiError
from app.routing.choice import Order, Standing
from app.routing.conditions import QUIET, Conditions
from app.routing.needs import NO_NEEDS, Fit, Needs, fit
from app.routing.ranking import Candidate, ScoreParts
from app.routing.view import View

# Why a model is passed over.
UNKNOWN, COOLING, FULL, FIT = "unknown_model", "cooling", "full", "fit"

_ASCII_WHITE_SPACE = " \t\n\r\f\v"
# An error message repeats at most so much of a client's own words.
_LONGEST_QUOTE = 200


class Mode(enum.StrEnum):
    """How the `model` field routes a request."""

    ALIAS = "alias"
    LIST = "list"
    DIRECT = "direct"


class Asked(NamedTuple):
    """What the body's `model` asks for.

    names        model ids and aliases, each once, in the client's order; not empty
    needs_count  whether one of them is an alias: what the request needs counts then
    """

    mode: Mode
    names: tuple[str, ...]
    needs_count: bool


class Skipped(NamedTuple):
    """A name that was passed over, and why."""

    name: str
    reason: str


class Rules(NamedTuple):
    """How a router is set to decide.

    pass_unknown   whether names that the models feed does not have go upstream
    balanced       whether an alias's models share its clients; else the best ranked is first
    list_return_s  how long a choice that a list's failover made goes before the list's order
    """

    pass_unknown: bool = False
    balanced: bool = False
    list_return_s: float = 60.0


class Caller(NamedTuple):
    """Who asks, and what is remembered of it.

    key          the client key
    choice       the client's last good model, or None
    moved_ago_s  how long ago a list's failover made this choice, seconds; None: none made it
    """

    key: str = ""
    choice: str | None = None
    moved_ago_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where a request goes.

    candidates  model ids, the first to be tried first; not empty
    sticky      what the client's sticky choice is to this request: `hit`, `miss` (there is none),
                `ignored` (it is not tried first); empty in direct mode
    skipped     what is passed over before the first candidate, and what nobody tries
    keep        the sticky choice is passed over and stands for later requests
    band        those of an alias's candidates among which clients are shared out
    """

    mode: Mode
    candidates: tuple[str, ...]
    sticky: str = ""
    skipped: tuple[Skipped, ...] = ()
    keep: bool = False
    band: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Placed:
    """A candidate of a decision, and what put it where it is; for people to read.

    standing  in the lineup of the alias that has it
    """

    standing: Standing
    cooling_s: float
    open: int
    in_band: bool


def read_asked(view: View, model: str, max_list_items: int) -> Asked:
    """Read the body's `model`.

    view            what the request is routed by
    model           not blank
    max_list_items  the longest list a client may send
    Raises          ApiError: invalid_model_list
    Cost            O(items), no I/O

    Source: specs/002 R4, specs/004 R1, R2.
    """
    if model in view.aliases:
        return Asked(Mode.ALIAS, (model,), needs_count=True)
    if "," not in model:
        return Asked(Mode.DIRECT, (model,), needs_count=False)
    names = _list_items(model, max_list_items)
    return Asked(Mode.LIST, names, any(name in view.aliases for name in names))


def refuse_unknown(view: View, asked: Asked, pass_unknown: bool) -> None:
    """Refuse what names only unknown models, before anything is looked up for it.

    Raises  ApiError: unknown_model
    Cost    O(names), no I/O
    """
    if not pass_unknown and not any(name in view.aliases or view.admits(name)
                                    for name in asked.names):
        raise _nothing_left(asked, asked.names)


def decide(view: View, asked: Asked, needs: Needs, caller: Caller = Caller(),
           rules: Rules = Rules(), conditions: Conditions = QUIET) -> Decision:
    """Decide which models to try, and in which order.

    view        what the request is routed by
    asked       what the client named
    needs       of the request, where they count
    caller      direct mode does not look at it
    rules       of this router
    conditions  of the models at this moment; direct mode does not look at them
    Returns     Decision; the same arguments give the same one
    Raises      ApiError: unknown_model, no_candidates
    Cost        O(candidates), no I/O; see Lineup.order

    Source: specs/002 R5-R7, R51, specs/003 R45, R60, specs/004 R3, R5, R6, specs/005 R3, R15, R16.
    """
    if asked.mode is Mode.DIRECT:
        if not rules.pass_unknown and not view.admits(asked.names[0]):
            raise _nothing_left(asked, asked.names)
        return Decision(asked.mode, asked.names)
    client_key, unknown = caller.key if rules.balanced else None, tuple[str, ...]()
    if asked.mode is Mode.ALIAS:
        order = view.lineup(asked.names[0], needs).order(conditions, client_key)
    else:
        order, unknown = _list_order(view, asked, needs, rules, conditions, client_key)
    if not order.names:
        raise _nothing_left(asked, unknown)
    skipped = tuple([Skipped(name, UNKNOWN) for name in unknown])
    return _with_choice(view, asked, needs, caller, rules, order, skipped)


def placed(view: View, asked: Asked, needs: Needs, conditions: Conditions,
           decision: Decision) -> tuple[Placed, ...]:
    """Say of each candidate of a decision what put it where it is.

    The arguments are those of the decision. Cost: O(candidates), no I/O.

    Source: specs/003 R49.
    """
    standings = dict[str, Standing]()
    for name in asked.names:
        if name in view.aliases:
            standings = {**view.lineup(name, needs).by_name, **standings}
    return tuple(Placed(
        standings[name] if name in standings else _named(view, name, needs),
        conditions.cooling.get(name, 0.0), conditions.open_requests.get(name, 0),
        name in decision.band) for name in decision.candidates)


def _named(view: View, name: str, needs: Needs) -> Standing:
    """Return the standing of a model that the client has named itself."""
    model = view.catalogue.models.get(name) if view.catalogue is not None else None
    unranked = Candidate(name, ScoreParts(0.0, 0.0, 0.0), instances=0)
    return Standing(view.candidate(name) or unranked, 0, *fit(needs, model))


def _list_order(view: View, asked: Asked, needs: Needs, rules: Rules, conditions: Conditions,
                client_key: str | None) -> tuple[Order, tuple[str, ...]]:
    """Return the order of what a list names, and those of its names that are unknown."""
    models, unknown, band = dict[str, None](), list[str](), frozenset[str]()
    # As they would stand if nothing cooled, up to the first that does not.
    healthy = dict[str, None]()
    for name in asked.names:
        if name in view.aliases:
            order = view.lineup(name, needs).order(conditions, client_key)
            healthy.update(dict.fromkeys(order.passed_over + order.names))
            models.update(dict.fromkeys(order.names))
            band |= order.band
        elif rules.pass_unknown or view.admits(name):
            healthy[name] = models[name] = None
        else:
            unknown.append(name)
    names, cooling = tuple(models), frozenset(conditions.cooling.keys() & models.keys())
    if not cooling:
        return Order(names, band), tuple(unknown)
    ordered = sorted(names, key=cooling.__contains__)
    ahead = tuple(healthy)[:tuple(healthy).index(ordered[0])]
    return Order(tuple(ordered), band, cooling, ahead), tuple(unknown)


def _with_choice(view: View, asked: Asked, needs: Needs, caller: Caller, rules: Rules,
                 order: Order, skipped: tuple[Skipped, ...]) -> Decision:
    """Put the client's sticky choice first, unless something speaks against it."""
    names, choice = order.names, caller.choice
    sticky, why = "ignored", ""
    if choice is None:
        sticky = "miss"
    elif choice == names[0]:
        sticky = "hit"
    elif choice in names and (asked.mode is Mode.ALIAS or (
            caller.moved_ago_s is not None and caller.moved_ago_s < rules.list_return_s)):
        why = _passed_over(view, choice, needs, order)
        if not why:
            others = tuple([name for name in names if name != choice])
            return Decision(asked.mode, (choice, *others), "hit", skipped, band=order.band)
    cooled = [Skipped(name, COOLING) for name in order.passed_over]
    if choice is not None and why and choice not in order.passed_over:
        cooled = [Skipped(choice, why), *cooled]
    return Decision(asked.mode, names, sticky, (*cooled, *skipped), bool(why), order.band)


def _passed_over(view: View, choice: str, needs: Needs, order: Order) -> str:
    """Return why a sticky choice is passed over for another candidate; empty if it is not."""
    if choice in order.cooling and len(order.cooling) < len(order.names):
        return COOLING
    if _is_full(view, choice) and not all([_is_full(view, name) for name in order.names]):
        return FULL
    if _fits_less(view, choice, order.names, needs):
        return FIT
    return ""


def _is_full(view: View, model: str) -> bool:
    candidate = view.candidate(model)
    return candidate is not None and candidate.full


def _nothing_left(asked: Asked, unknown: tuple[str, ...]) -> ApiError:
    if len(unknown) < len(asked.names):
        return ApiError("no_candidates", "No model is available for this alias right now.")
    named = ", ".join(_quoted(model) for model in unknown)
    return ApiError("unknown_model", f"Unknown model: {named}.")


def _fits_less(view: View, choice: str, candidates: tuple[str, ...], needs: Needs) -> bool:
    """Say whether the choice does not fit the request and another candidate does, or may."""
    return (needs is not NO_NEEDS and view.fit(choice, needs) is Fit.NO
            and any(view.fit(model, needs) is not Fit.NO for model in candidates))


def _list_items(asked: str, max_items: int) -> tuple[str, ...]:
    items = (item.strip(_ASCII_WHITE_SPACE) for item in asked.split(","))
    names = tuple(dict.fromkeys(item for item in items if item))
    if not names:
        raise ApiError("invalid_model_list", "The model list names no model.")
    if len(names) > max_items:
        raise ApiError("invalid_model_list",
                       f"The model list names {len(names)} models; at most {max_items} are taken.")
    return names


def _quoted(model: str) -> str:
    shown = model if len(model) <= _LONGEST_QUOTE else model[:_LONGEST_QUOTE] + "..."
    return f"'{shown}'"

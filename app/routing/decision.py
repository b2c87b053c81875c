"""Decides where a request goes.

Source: specs/002 R4-R7, R51, specs/004 R1-R6, specs/005 R3.
"""

import dataclasses
import enum
from typing import NamedTuple

from app.errors import ApiError
from app.routing.conditions import QUIET, Conditions
from app.routing.needs import NO_NEEDS, Fit, Needs
from app.routing.view import View

# Why a name of a list is passed over.
UNKNOWN = "unknown_model"

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


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where a request goes.

    candidates  model ids, the first to be tried first; not empty
    sticky      what the client's sticky choice is to this request: `hit`, `miss` (there is none),
                `ignored` (no candidate, cooling, or none that fits); empty in direct mode
    skipped     what the client named and nobody tries
    keep        the sticky choice is a candidate and cools or does not fit: it stands for later
                requests
    """

    mode: Mode
    candidates: tuple[str, ...]
    sticky: str = ""
    skipped: tuple[Skipped, ...] = ()
    keep: bool = False


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


def decide(view: View, asked: Asked, needs: Needs, sticky_choice: str | None,
           pass_unknown: bool, conditions: Conditions = QUIET) -> Decision:
    """Decide which models to try, and in which order.

    view           what the request is routed by
    asked          what the client named
    needs          of the request, where they count
    sticky_choice  the client's last good model, or None; direct mode does not use it
    pass_unknown   whether names that the models feed does not have go upstream
    conditions     of the models, on this host
    Returns        Decision
    Raises         ApiError: unknown_model, no_candidates
    Cost           O(candidates), no I/O

    Source: specs/002 R5-R7, R51, specs/003 R42, specs/004 R3, R5, R6, specs/005 R3.
    """
    if asked.mode is Mode.DIRECT:
        if not pass_unknown and not view.admits(asked.names[0]):
            raise _nothing_left(asked, asked.names)
        return Decision(asked.mode, asked.names)
    candidates, unknown = _expanded(view, asked, needs, pass_unknown)
    if not candidates:
        raise _nothing_left(asked, unknown)
    if conditions.cooling:
        # Stable: among those that cool, and among the others, the order stays.
        candidates = tuple(sorted(candidates, key=conditions.cooling.__contains__))
    skipped = tuple(Skipped(name, UNKNOWN) for name in unknown)
    if sticky_choice is None:
        return Decision(asked.mode, candidates, "miss", skipped)
    if sticky_choice not in candidates:
        return Decision(asked.mode, candidates, "ignored", skipped)
    if sticky_choice in conditions.cooling or _fits_less(view, sticky_choice, candidates, needs):
        return Decision(asked.mode, candidates, "ignored", skipped, keep=True)
    others = tuple(model for model in candidates if model != sticky_choice)
    return Decision(asked.mode, (sticky_choice, *others), "hit", skipped)


def _expanded(view: View, asked: Asked, needs: Needs,
              pass_unknown: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the model ids that the names stand for, and the names that are unknown."""
    if asked.mode is Mode.ALIAS:
        return view.candidates(asked.names[0], needs), ()
    models, unknown = dict[str, None](), list[str]()
    for name in asked.names:
        if name in view.aliases:
            models.update(dict.fromkeys(view.candidates(name, needs)))
        elif pass_unknown or view.admits(name):
            models[name] = None
        else:
            unknown.append(name)
    return tuple(models), tuple(unknown)


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

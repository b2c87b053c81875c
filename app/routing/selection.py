"""From the `model` string to the candidates, in the order to try them.

Source: specs/002 R4-R7, specs/004 R1-R5, specs/005 R3.
"""

import dataclasses
import enum
import re

from app.errors import ApiError
from app.routing.snapshot import Allowlist, Snapshot

ALIASES = frozenset(("chutesai/AutoPilot", "chutesai-routing/AutoPilot"))

_ASCII_WHITE_SPACE = " \t\n\r\f\v"
# An item of a list comes back in a response header; these are what one may hold.
_HEADER_SAFE = re.compile(r"[\x20-\x7e]+")
# How much of a client's own words an error message repeats.
_LONGEST_QUOTE = 200


class Mode(enum.StrEnum):
    """How the `model` field routes a request."""

    ALIAS = "alias"
    LIST = "list"
    DIRECT = "direct"


@dataclasses.dataclass(frozen=True)
class Route:
    """Where a request may go: its mode and its candidates, first to try first, never empty."""

    mode: Mode
    candidates: tuple[str, ...]

    def preferring(self, choice: str | None) -> "Route":
        """Return this route with `choice` first if it is a candidate; the rest keep their order.

        Source: specs/005 R3.
        """
        if choice is None or choice not in self.candidates:
            return self
        place = self.candidates.index(choice)
        return Route(self.mode, (choice, *self.candidates[:place], *self.candidates[place + 1:]))


def sticky_result(route: Route, choice: str | None) -> str:
    """Return what a looked up choice is to a route: `hit`, `miss` or `ignored`."""
    if choice is None:
        return "miss"
    return "hit" if choice in route.candidates else "ignored"


def select(model: str, allowlist: Allowlist | None, snapshot: Snapshot | None,
           max_list_items: int) -> Route:
    """Decide where a request goes.

    model           the body's `model`, not blank
    allowlist       None while nothing was fetched: direct and list models go unchecked then
    snapshot        None while nothing was fetched: an alias has no candidate then
    max_list_items  the longest list a client may send
    Returns         Route
    Raises          ApiError: invalid_model_list, unknown_model, no_candidates
    Cost            O(candidates), no I/O
    """
    if model in ALIASES:
        if snapshot is None or not snapshot.candidates:
            raise ApiError("no_candidates", "No model is available for this alias right now.")
        return Route(Mode.ALIAS, snapshot.names)
    if "," in model:
        route = Route(Mode.LIST, _list_items(model, max_list_items))
    else:
        route = Route(Mode.DIRECT, (model,))
    _check_allowed(route.candidates, allowlist)
    return route


def _list_items(model: str, max_items: int) -> tuple[str, ...]:
    items = (item.strip(_ASCII_WHITE_SPACE) for item in model.split(","))
    names = tuple(dict.fromkeys(item for item in items if item))
    if not names:
        raise ApiError("invalid_model_list", "The model list names no model.")
    if len(names) > max_items:
        raise ApiError("invalid_model_list",
                       f"The model list names {len(names)} models; at most {max_items} are taken.")
    if not all(map(_HEADER_SAFE.fullmatch, names)):
        raise ApiError("invalid_model_list",
                       "The model list has an item with characters other than visible ASCII.")
    return names


def _check_allowed(models: tuple[str, ...], allowlist: Allowlist | None) -> None:
    if allowlist is None:
        return
    unknown = [model for model in models if not allowlist.admits(model)]
    if unknown:
        named = ", ".join(_quoted(model) for model in unknown)
        raise ApiError("unknown_model", f"Unknown model: {named}.")


def _quoted(model: str) -> str:
    shown = model if len(model) <= _LONGEST_QUOTE else model[:_LONGEST_QUOTE] + "..."
    return f"'{shown}'"


def log_name(model: str, allowlist: Allowlist | None) -> str:
    """Return the name a model goes by in logs and metrics: a closed set, whatever clients send.

    Returns  an alias, an allowlisted id, or `other`, which a list is too: its mode says so
    """
    if model in ALIASES:
        return model
    ids = allowlist.ids if allowlist is not None else frozenset()
    if model in ids:
        return model
    base = model.rpartition(":")[0]
    return base if base in ids else "other"

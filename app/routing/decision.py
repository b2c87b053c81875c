"""Decides where a request goes.

Source: specs/002 R4-R7, specs/004 R1-R5, specs/005 R3.
"""

import dataclasses
import enum
import re

from app.errors import ApiError
from app.routing.view import View

_ASCII_WHITE_SPACE = " \t\n\r\f\v"
# An item of a list comes back in a response header, which may hold these characters.
_HEADER_SAFE = re.compile(r"[\x20-\x7e]+")
# An error message repeats at most so much of a client's own words.
_LONGEST_QUOTE = 200


class Mode(enum.StrEnum):
    """How the `model` field routes a request."""

    ALIAS = "alias"
    LIST = "list"
    DIRECT = "direct"


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where a request goes.

    candidates  model ids, the first to be tried first; not empty
    sticky      what the client's sticky choice is to this request: `hit`, `miss` (there is none),
                `ignored` (no candidate); empty in direct mode
    """

    mode: Mode
    candidates: tuple[str, ...]
    sticky: str = ""


def mode_of(view: View, asked: str) -> Mode:
    """Return the mode of a request for `asked`, the body's `model`."""
    if asked in view.aliases:
        return Mode.ALIAS
    return Mode.LIST if "," in asked else Mode.DIRECT


def decide(view: View, asked: str, sticky_choice: str | None, max_list_items: int) -> Decision:
    """Decide which models to try, and in which order.

    view            what the request is routed by
    asked           the body's `model`, not blank
    sticky_choice   the client's last good model, or None; direct mode does not use it
    max_list_items  the longest list a client may send
    Returns         Decision
    Raises          ApiError: invalid_model_list, unknown_model, no_candidates
    Cost            O(candidates), no I/O
    """
    mode = mode_of(view, asked)
    if mode is Mode.ALIAS:
        candidates = view.pools[asked]
        if not candidates:
            raise ApiError("no_candidates", "No model is available for this alias right now.")
    else:
        candidates = _list_items(asked, max_list_items) if mode is Mode.LIST else (asked,)
        _check_admitted(view, candidates)
    if mode is Mode.DIRECT:
        return Decision(mode, candidates)
    if sticky_choice is None:
        return Decision(mode, candidates, "miss")
    if sticky_choice not in candidates:
        return Decision(mode, candidates, "ignored")
    others = tuple(model for model in candidates if model != sticky_choice)
    return Decision(mode, (sticky_choice, *others), "hit")


def _list_items(asked: str, max_items: int) -> tuple[str, ...]:
    items = (item.strip(_ASCII_WHITE_SPACE) for item in asked.split(","))
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


def _check_admitted(view: View, models: tuple[str, ...]) -> None:
    unknown = [model for model in models if not view.admits(model)]
    if unknown:
        named = ", ".join(_quoted(model) for model in unknown)
        raise ApiError("unknown_model", f"Unknown model: {named}.")


def _quoted(model: str) -> str:
    shown = model if len(model) <= _LONGEST_QUOTE else model[:_LONGEST_QUOTE] + "..."
    return f"'{shown}'"

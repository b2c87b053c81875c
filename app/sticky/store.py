"""What a sticky store does, whichever way it keeps its entries.

An entry is a client key and the model that last answered that client. Stores may do I/O and may
switch greenlets; they never raise: a store in trouble costs stickiness, not a request.

Source: specs/005 R4-R7.
"""

import dataclasses
from typing import Protocol


@dataclasses.dataclass
class StickyChoice:
    """What a store said of a client, handed back to it by the same request.

    model    the client's model, or None if there is no live entry
    renewed  reading it has started its life anew: it need not be written again
    spent_s  how long the store has kept this request so far, seconds
    """

    model: str | None = None
    renewed: bool = False
    spent_s: float = 0.0


class StickyStore(Protocol):
    """Where sticky choices are kept."""

    def get(self, client_key: str) -> StickyChoice:
        """Look a client up."""

    def put(self, client_key: str, model: str, choice: StickyChoice) -> None:
        """Keep `model` for the client, whose choice was `choice`; its life starts anew."""

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice`; another's success stays."""


class NoStickiness:
    """The store when stickiness is switched off: it keeps nothing."""

    def get(self, client_key: str) -> StickyChoice:
        """Return no choice."""
        return StickyChoice()

    def put(self, client_key: str, model: str, choice: StickyChoice) -> None:
        """Do nothing."""

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Do nothing."""

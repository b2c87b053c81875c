"""What every sticky store does, whatever it keeps its entries in.

An entry says which model last answered a client; its key is the client key. A store may do I/O and
may switch greenlets. It never raises: a failing store costs stickiness, not a request.

Source: specs/005 R4-R7, R17.
"""

import dataclasses
from typing import Protocol


@dataclasses.dataclass
class StickyChoice:
    """What a store said of a client; the same request hands it back to the store.

    model     the client's model, or None without a live entry
    renewed   reading the entry has renewed its life, so an unchanged choice need not be written
    spent_s   time the store has taken of this request so far, seconds
    moved_at  when a list's failover made the choice, on the store's clock; None: none did
    """

    model: str | None = None
    renewed: bool = False
    spent_s: float = 0.0
    moved_at: float | None = None


class StickyStore(Protocol):
    """Keeps sticky choices."""

    def get(self, client_key: str) -> StickyChoice:
        """Look up a client's model."""

    def look(self, client_key: str) -> StickyChoice:
        """Look up a client's model without renewing its life."""

    def put(self, client_key: str, model: str, choice: StickyChoice,
            by_list: bool = False) -> None:
        """Keep `model` for the client, whose choice was `choice`; its life starts anew.

        by_list  whether a list's failover has made it, now; else the same model keeps the time at
                 which one did
        """

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice.model`.

        Another request of the client may have succeeded with another model meanwhile.
        """

    def keep(self) -> None:
        """Look after files and connections; a worker calls this every second."""


class NoStickiness:
    """Keeps nothing: the store when stickiness is switched off."""

    def get(self, client_key: str) -> StickyChoice:
        """Return no choice."""
        return StickyChoice()

    look = get

    def put(self, client_key: str, model: str, choice: StickyChoice,
            by_list: bool = False) -> None:
        """Do nothing."""

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Do nothing."""

    def keep(self) -> None:
        """Do nothing."""

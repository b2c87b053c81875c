"""What a sticky store does, whichever way it keeps its entries.

An entry is a client key and the model that last answered that client. Stores may do I/O and may
switch greenlets; they never raise: a store in trouble costs stickiness, not a request.

Source: specs/005 R4-R7.
"""

from typing import Protocol


class StickyStore(Protocol):
    """Where sticky choices are kept."""

    def get(self, client_key: str) -> str | None:
        """Return the client's model, or None if there is no live entry."""

    def put(self, client_key: str, model: str, known: str | None) -> None:
        """Keep `model` for the client; its life starts anew.

        known  what `get` said for this request: a store need not write what it has
        """

    def discard(self, client_key: str, model: str) -> None:
        """Forget the client's entry if it names `model`; another's success is not undone."""


class NoStickiness:
    """The store when stickiness is switched off: it keeps nothing."""

    def get(self, client_key: str) -> str | None:
        """Return None."""
        return None

    def put(self, client_key: str, model: str, known: str | None) -> None:
        """Do nothing."""

    def discard(self, client_key: str, model: str) -> None:
        """Do nothing."""

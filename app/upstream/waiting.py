"""How many requests wait for the same model, so that one model that hangs leaves room for others.

Source: specs/007 R22.
"""

import math

from app.errors import overloaded


class Waiting:
    """Counts, for each model, the requests that wait for the first byte of its answer.

    most  so many may wait for one model
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._counts: dict[str, int] = {}

    def is_full(self, model: str) -> bool:
        """Say whether no further request may wait for a model."""
        return self._counts.get(model, 0) >= self._most

    def enter(self, model: str) -> None:
        """Count one request more; whoever calls this calls `leave`.

        Raises  ApiError overloaded
        """
        if self.is_full(model):
            raise overloaded("Too many requests wait for this model already.")
        self._counts[model] = self._counts.get(model, 0) + 1

    def leave(self, model: str) -> None:
        """Count one request less."""
        left = self._counts[model] - 1
        if left:
            self._counts[model] = left
        else:
            del self._counts[model]

"""Sticky choices in this worker's memory.

Source: specs/005 R4-R6.
"""

from collections import OrderedDict
from collections.abc import Callable


class MemoryStickyStore:
    """A bounded table in least-recently-used order.

    ttl_s        life of an entry since its last use, seconds
    max_entries  beyond this the least recently used entries go
    clock        returns seconds, monotonic

    Cost: O(1) each call, no I/O, no switch.
    """

    def __init__(self, ttl_s: float, max_entries: int, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._clock = clock
        self._entries: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, client_key: str) -> str | None:
        """Return the client's model, or None if there is no live entry."""
        entry = self._entries.get(client_key)
        if entry is None:
            return None
        model, expires_at = entry
        if self._clock() >= expires_at:
            del self._entries[client_key]
            return None
        return model

    def put(self, client_key: str, model: str) -> None:
        """Keep `model` for the client; its life starts anew."""
        self._entries[client_key] = (model, self._clock() + self._ttl_s)
        self._entries.move_to_end(client_key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def discard(self, client_key: str, model: str) -> None:
        """Forget the client's entry if it names `model`."""
        entry = self._entries.get(client_key)
        if entry is not None and entry[0] == model:
            del self._entries[client_key]

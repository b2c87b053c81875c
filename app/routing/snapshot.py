"""The picture of the backend that requests are routed by.

A `Snapshot` and an `Allowlist` never change: a refresh makes new ones and the store's one
reference to each is replaced. A request that read them keeps a consistent view for its life.

Source: specs/003 R1, R8.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

from app.routing.ranking import Candidate, UtilizationRow, rank


@dataclasses.dataclass(frozen=True)
class Allowlist:
    """The model ids of the models feed; empty means nothing was fetched yet.

    taken_at  seconds on a monotonic clock
    """

    ids: frozenset[str]
    taken_at: float

    def admits(self, model: str) -> bool:
        """Say whether a client may name this model.

        A name ending in `:something` the backend interprets is judged by what stands before
        its last colon. Source: specs/002 R7.
        """
        if not self.ids or model in self.ids:
            return True
        base, _, suffix = model.rpartition(":")
        return bool(suffix) and base in self.ids


@dataclasses.dataclass(frozen=True, repr=False)
class Snapshot:
    """Ranked candidates, best first, and when their utilization was fetched.

    taken_at  seconds on a monotonic clock
    """

    candidates: tuple[Candidate, ...]
    taken_at: float

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Return the candidates' model ids, best first."""
        return tuple(candidate.name for candidate in self.candidates)

    def __repr__(self) -> str:
        return f"<Snapshot taken_at={self.taken_at:.1f} candidates={len(self.candidates)}>"


class SnapshotStore:
    """The current allowlist and snapshot of this worker.

    clock  returns seconds, monotonic
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: tuple[UtilizationRow, ...] = ()
        self.allowlist: Allowlist | None = None
        self.snapshot: Snapshot | None = None

    def replace_allowlist(self, ids: Iterable[str], age_s: float = 0.0) -> None:
        """Take a new allowlist and filter the last rows by it at once.

        age_s  how long ago it was fetched, seconds
        Cost   O(n log n) in the rows
        """
        self.allowlist = Allowlist(frozenset(ids), self._clock() - age_s)
        if self.snapshot is not None:
            self._rank(self.snapshot.taken_at)

    def replace_rows(self, rows: Iterable[UtilizationRow], age_s: float = 0.0) -> None:
        """Take a new utilization feed.

        age_s  how long ago it was fetched, seconds
        Cost   O(n log n) in the rows
        """
        self._rows = tuple(rows)
        self._rank(self._clock() - age_s)

    def _rank(self, taken_at: float) -> None:
        ids = self.allowlist.ids if self.allowlist is not None else frozenset()
        self.snapshot = Snapshot(rank(self._rows, ids), taken_at)

    def allowlist_age_s(self) -> float | None:
        """Return the allowlist's age in seconds, or None when there is none."""
        return None if self.allowlist is None else self._clock() - self.allowlist.taken_at

    def snapshot_age_s(self) -> float | None:
        """Return the snapshot's age in seconds, or None when there is none."""
        return None if self.snapshot is None else self._clock() - self.snapshot.taken_at

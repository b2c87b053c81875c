"""What requests are routed by.

A `View` never changes. Each refresh of a feed makes a new one, which replaces the last one whole.
A request reads it once and keeps it to its end.

Source: specs/003 R1, R8, R22, R34, R61.
"""

import bisect
import dataclasses
import functools
import statistics
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.routing.aliases import BUILT_IN, Alias, Pool
from app.routing.catalogue import OTHER, Catalogue, Model
from app.routing.choice import Lineup, line_up
from app.routing.needs import NO_NEEDS, Fit, Needs, fit
from app.routing.ranking import Candidate, Ranking, UtilizationRow, no_pause, rank

# A row that is dated further ahead says nothing of the feed's age; clocks differ by less.
_MOST_AHEAD_S = 60.0


@dataclasses.dataclass(frozen=True, repr=False)
class Snapshot:
    """A ranking, and when its utilization was fetched.

    taken_at  seconds on a monotonic clock
    told_at   the moment that the feed tells of by its own timestamp, on the same clock; None
              without a timestamp
    """

    ranking: Ranking
    taken_at: float
    told_at: float | None = None

    @property
    def as_of(self) -> float:
        """Return since when the figures may have changed, on the same clock."""
        return self.taken_at if self.told_at is None else self.told_at

    def __repr__(self) -> str:
        return f"<Snapshot taken_at={self.taken_at:.1f} candidates={len(self.ranking.candidates)}>"


@dataclasses.dataclass(frozen=True)
class View:
    """The upstream as one request sees it.

    catalogue  None while the models feed has never been fetched
    snapshot   None while the utilization feed has never been fetched
    aliases    by name
    pause      called now and then while much is put in order, to let others run
    """

    catalogue: Catalogue | None = None
    snapshot: Snapshot | None = None
    aliases: Mapping[str, Alias] = dataclasses.field(default_factory=lambda: BUILT_IN)
    pause: Callable[[], None] = no_pause

    def pool(self, alias: str) -> Pool:
        """Return the chutes that an alias may choose now."""
        if alias not in self._pools:
            candidates = self.snapshot.ranking.candidates if self.snapshot is not None else ()
            models = self.catalogue.models if self.catalogue is not None else {}
            self._pools[alias] = self.aliases[alias].pool(candidates, models, self.pause)
        return self._pools[alias]

    @functools.cached_property
    def _pools(self) -> dict[str, Pool]:
        return {}

    def lineup(self, alias: str, needs: Needs) -> Lineup:
        """Return the models that an alias may choose now, as one kind of needs orders them.

        Cost  line_up, once for each alias and each kind of needs; pauses
        """
        # Two contexts that the same models have make the same order.
        kind = (alias,) if needs is NO_NEEDS else (
            alias, needs.features, needs.inputs, self._context_step(needs.context))
        if kind not in self._lineups:
            # One makes it, and all who want it meanwhile wait.
            with self._lining_up:
                if kind not in self._lineups:
                    self._lineups[kind] = line_up(self.pool(alias), needs, self.pause)
        return self._lineups[kind]

    @functools.cached_property
    def _lineups(self) -> dict[tuple[Any, ...], Lineup]:
        return {}

    @functools.cached_property
    def _lining_up(self) -> threading.Lock:
        return threading.Lock()

    def _context_step(self, tokens: int) -> int:
        """Return the number of declared contexts that are shorter, plus 1; 0 for 0 tokens."""
        return bisect.bisect_left(self._contexts, tokens) + 1 if tokens else 0

    @functools.cached_property
    def _contexts(self) -> list[int]:
        models = self.catalogue.models.values() if self.catalogue is not None else ()
        return sorted({model.context_length for model in models if model.context_length})

    def fit(self, model: str, needs: Needs) -> Fit:
        """Say whether a model declares what a request needs."""
        models = self.catalogue.models if self.catalogue is not None else {}
        return fit(needs, models.get(model))[0]

    def candidate(self, model: str) -> Candidate | None:
        """Return what the ranking knows of a model; None where it does not have it."""
        return self.snapshot.ranking.by_name.get(model) if self.snapshot is not None else None

    def admits(self, model: str) -> bool:
        """Say whether a client may name this model; every one while there is no catalogue."""
        return self.catalogue is None or self.catalogue.admits(model)

    def lists(self, model: str) -> bool:
        """Say whether the models feed has this name exactly; the ranking, while there is no feed.

        Source: specs/003 R44.
        """
        if self.catalogue is None:
            return self.candidate(model) is not None
        return model in self.catalogue.models

    def label(self, model: str) -> str:
        """Return the name a model has in logs and metrics: a closed set, whatever clients send.

        Returns  an alias, an allowlisted id, or `other`, which a list is too
        """
        if model in self.aliases:
            return model
        return OTHER if self.catalogue is None else self.catalogue.label(model)


class Views:
    """Holds the current view of this worker, and makes the next.

    clock       returns seconds, monotonic
    on_change   told of each new view
    aliases     by name
    pause       called now and then while a large feed is worked on, to let others run
    wall_clock  returns seconds since 1970; None: timestamps in feeds are not looked at
    """

    def __init__(self, clock: Callable[[], float], on_change: Callable[[View], None],
                 aliases: Mapping[str, Alias] = BUILT_IN,
                 pause: Callable[[], None] = no_pause,
                 wall_clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_change = on_change
        self._pause = pause
        self._catalogue: Catalogue | None = None
        self._rows: tuple[UtilizationRow, ...] = ()
        self._rows_taken_at: float | None = None
        self._rows_told_at: float | None = None
        self._changes = 0
        self.current = View(aliases=aliases, pause=pause)
        on_change(self.current)

    def take_models(self, models: Iterable[Model], age_s: float = 0.0) -> None:
        """Take a new catalogue, and rank the last rows by it at once; they keep their age.

        age_s  how long ago it was fetched
        Cost   O(n log n) in the rows; pauses
        """
        self._catalogue = Catalogue.of(models, self._clock() - age_s)
        self._replace()

    def take_rows(self, rows: Iterable[UtilizationRow], age_s: float = 0.0) -> None:
        """Take a new utilization feed.

        age_s  how long ago it was fetched
        Cost   O(n log n) in the rows; pauses
        """
        self._rows, self._rows_taken_at = tuple(rows), self._clock() - age_s
        self._rows_told_at = self._told_at(self._rows_taken_at)
        self._replace()

    def _told_at(self, taken_at: float) -> float | None:
        if self._wall_clock is None:
            return None
        now = self._wall_clock()
        told = [row.timestamp for row in self._rows
                if row.timestamp is not None and row.timestamp <= now + _MOST_AHEAD_S]
        if not told:
            return None
        # A clock that is wrong must not make a feed younger than its fetch.
        return min(self._clock() - (now - statistics.median_low(told)), taken_at)

    def _replace(self) -> None:
        """Make the view of what was taken last, also if that came during a pause."""
        self._changes += 1
        change = 0
        while change != self._changes:
            change, catalogue, taken_at = self._changes, self._catalogue, self._rows_taken_at
            told_at = self._rows_told_at
            snapshot = None
            if taken_at is not None:
                allowlist = catalogue.ids if catalogue is not None else frozenset[str]()
                snapshot = Snapshot(rank(self._rows, allowlist, self._pause), taken_at, told_at)
            view = dataclasses.replace(self.current, catalogue=catalogue, snapshot=snapshot)
            for alias in view.aliases:
                # No request has to wait until its alias has a pool.
                view.lineup(alias, NO_NEEDS)
        self.current = view
        self._on_change(view)

"""Say which models appear and which go: once on a host, whichever worker sees it first.

Say also when there is none that an alias could choose.

Source: specs/003 R4, R23.
"""

import collections
import contextlib
import fcntl
import json
import logging
import math
import pathlib
from collections.abc import Callable, Iterable

from app.eventloop import pause
from app.logs import StateChange
from app.metrics import catalogue_changes_total, count
from app.routing.catalogue import Catalogue, Model
from app.routing.view import View, Views

logger = logging.getLogger(__name__)

# Lines logged between two pauses; they take about 2 ms.
_LINES_PER_SLICE = 64


class CatalogueChanges:
    """Takes each new catalogue, and logs and counts what has changed since the host's last.

    views   that take it
    path    of a file that keeps the last catalogue's ids for the workers of the host; None: this
            worker is alone
    usable  says whether the file's directory may be read and written now
    tell    told of each change, and of the models that it befell
    """

    def __init__(self, views: Views, path: pathlib.Path | None,
                 usable: Callable[[], bool] = lambda: True,
                 tell: Callable[[str, list[str]], None] = lambda *_: None) -> None:
        self._views = views
        self._tell = tell
        self._path = path
        self._usable = usable

    def take(self, models: Iterable[Model], age_s: float) -> None:
        """Take a catalogue; see Views.take_models.

        Cost  also reads and writes a small file; pauses
        """
        before = self._views.current.catalogue
        self._views.take_models(models, age_s)
        after = self._views.current.catalogue
        assert after is not None, "it has just been taken"
        ids_before = None if before is None else before.ids
        known = self._exchange(self._path, after, ids_before) if self._path else ids_before
        if known is None:
            return
        for change, ids in (("appeared", after.ids - known), ("gone", known - after.ids)):
            for number, model in enumerate(sorted(ids), 1):
                logger.info("catalogue changed", extra={"model": model, "change": change})
                if number % _LINES_PER_SLICE == 0:
                    pause()
            if ids:
                self._tell(change, sorted(ids))
                count(catalogue_changes_total, change, amount=len(ids))

    def _exchange(self, path: pathlib.Path, catalogue: Catalogue,
                  own: frozenset[str] | None) -> frozenset[str] | None:
        """Return the ids that the host knew, and keep these if they are newer.

        own      ids that this worker knew, for where the file is missing or damaged
        Returns  None where there is nothing to compare with, or another worker has it done

        A rename replaces the file, so a worker that is killed here leaves the old one. What it had
        to say is then said by the next worker that has a newer catalogue.
        """
        if not self._usable():
            return None
        # Without the file a change goes unsaid. Whoever has the lock has the same to say.
        with contextlib.suppress(OSError), open(path.with_suffix(".lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken_at, known = _read(path)
            if taken_at >= catalogue.taken_at:
                return None
            unfinished = path.with_suffix(".unfinished")
            # At once: json.dump would take ten times as long, piece by piece.
            unfinished.write_text(json.dumps(
                {"taken_at": catalogue.taken_at, "ids": sorted(catalogue.ids)}))
            unfinished.replace(path)
            return own if known is None else known
        return None


class Eligibility:
    """Logs when no row of the utilization feed is eligible, with the reasons, and when one is."""

    def __init__(self) -> None:
        self._state = StateChange(logger, "no model is eligible", "models are eligible again")

    def look(self, view: View) -> None:
        """Look at a new view; as long as a feed is missing there is nothing to say."""
        if view.catalogue is None or view.snapshot is None:
            return
        if view.snapshot.ranking.candidates:
            self._state.working()
            return
        reasons = collections.Counter(view.snapshot.ranking.rejected.values())
        self._state.failing(", ".join([f"{count} {reason}"
                                       for reason, count in reasons.most_common()])
                            or "all chutes are private")


def _read(path: pathlib.Path) -> tuple[float, frozenset[str] | None]:
    """Return when the file's catalogue was taken, and its ids; before all times without a file."""
    try:
        kept = json.loads(path.read_bytes())
        return float(kept["taken_at"]), frozenset(kept["ids"])
    except (OSError, ValueError, TypeError, KeyError):
        return -math.inf, None

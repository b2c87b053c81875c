"""Say which models appear and which go: once on a host, whichever worker sees it first.

Source: specs/003 R23.
"""

import contextlib
import fcntl
import json
import logging
import pathlib
from collections.abc import Callable, Iterable

from app.eventloop import pause
from app.metrics import catalogue_changes_total, count
from app.routing.catalogue import Catalogue, Model
from app.routing.view import Views

logger = logging.getLogger(__name__)

# Lines logged between two pauses; they take about 2 ms.
_LINES_PER_SLICE = 64


class CatalogueChanges:
    """Takes each new catalogue, and logs and counts what has changed since the host's last.

    views   that take it
    path    of a file that keeps the last catalogue's ids for the workers of the host; None: this
            worker is alone
    usable  says whether the file's directory may be read and written now
    """

    def __init__(self, views: Views, path: pathlib.Path | None,
                 usable: Callable[[], bool] = lambda: True) -> None:
        self._views = views
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
        known = self._exchange(after) if self._path else ids_before
        if known is None:
            return
        for change, ids in (("appeared", after.ids - known), ("gone", known - after.ids)):
            for number, model in enumerate(sorted(ids), 1):
                logger.info("catalogue changed", extra={"model": model, "change": change})
                if number % _LINES_PER_SLICE == 0:
                    pause()
            if ids:
                count(catalogue_changes_total, change, amount=len(ids))

    def _exchange(self, catalogue: Catalogue) -> frozenset[str] | None:
        """Return the ids that the host knew, and keep these if they are newer; None at first."""
        assert self._path is not None
        if not self._usable():
            return None
        # Without the file a change goes unsaid. Whoever has it locked has the same to say.
        with contextlib.suppress(OSError, ValueError), open(self._path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            text = file.read()
            known = json.loads(text) if text else None
            if known and known["taken_at"] >= catalogue.taken_at:
                return None
            file.truncate(0)
            # At once: json.dump would take ten times as long, piece by piece.
            file.write(json.dumps({"taken_at": catalogue.taken_at, "ids": sorted(catalogue.ids)}))
            return frozenset(known["ids"]) if known else None
        return None

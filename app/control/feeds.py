"""Keep a feed up to date: fetch the document, parse it, store the content.

The workers of a host share what each of them fetches. A worker first looks into the shared file
and fetches only if the document there is too old. A failed refresh keeps the last good content.

Source: specs/003 R7-R12.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sized
from typing import Generic, TypeVar

from app.control.saved import SavedFeed
from app.control.scheduler import PeriodicJob
from app.errors import FetchFailed
from app.eventloop import pause
from app.logs import StateChange
from app.metrics import count_refresh

logger = logging.getLogger(__name__)

Content = TypeVar("Content", bound=Sized)

# A worker looks for another worker's document this often between two fetches of its own.
CHECKS_PER_INTERVAL = 4
# A document is fresh for this share of the interval. Waits vary by a tenth: the third check comes
# at 0.825 of the interval at the latest, the fourth at 0.9 at the earliest. The fourth fetches.
_FRESH_SHARE = 0.87


@dataclasses.dataclass(frozen=True)
class FeedSource(Generic[Content]):
    """What one feed is, and where its content goes.

    name        for the log, the metrics and the saved file
    url         of the document
    interval_s  between two fetches, seconds
    parse       (document, pause) -> content, number of bad entries dropped; raises FetchFailed
    store       takes new content and its age in seconds
    """

    name: str
    url: str
    interval_s: float
    parse: Callable[[bytes, Callable[[], None]], tuple[Content, int]]
    store: Callable[[Content, float], None]


class Feed(Generic[Content]):
    """Keeps one feed's content up to date in this worker.

    source  of the content
    fetch   returns the document's bytes; raises FetchFailed
    saved   file that shares and keeps the document, or None
    clock   returns seconds, monotonic
    """

    def __init__(self, source: FeedSource[Content], fetch: Callable[[], bytes],
                 saved: SavedFeed | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._fetch = fetch
        self._saved = saved
        self._clock = clock
        self._fresh_s = source.interval_s * _FRESH_SHARE
        self._taken_at = self._tried_at = -math.inf
        self._state = StateChange(logger, "feed refresh fails", "feed refresh works again",
                                  feed=source.name)

    def job(self) -> PeriodicJob:
        """Return the job that keeps the content up to date."""
        return PeriodicJob(self._source.name, self.refresh,
                           self._source.interval_s / CHECKS_PER_INTERVAL)

    def refresh(self) -> bool:
        """Bring the content up to date, at most one fetch an interval.

        Returns  whether the content is fresh
        Cost     I/O; switches greenlets
        """
        self._take_saved()
        now = self._clock()
        if now - self._taken_at < self._fresh_s:
            self._state.working()
            return True
        if now - self._tried_at < self._fresh_s:
            return False
        self._tried_at = now
        try:
            document = self._fetch()
            count_refresh(self._source.name, self._take(document, 0.0))
        except FetchFailed as error:
            count_refresh(self._source.name, None)
            self._state.failing(str(error))
            return False
        self._state.working()
        if self._saved is not None:
            self._saved.write(document)
        return True

    def _take_saved(self) -> None:
        saved = self._saved.read_new() if self._saved is not None else None
        if saved is None or self._clock() - saved.age_s <= self._taken_at:
            return
        try:
            self._take(saved.document, saved.age_s)
        except FetchFailed as error:
            logger.warning("saved feed ignored", extra={
                "feed": self._source.name, "why": str(error)})

    def _take(self, document: bytes, age_s: float) -> int:
        content, dropped = self._source.parse(document, pause)
        self._source.store(content, age_s)
        self._taken_at = self._clock() - age_s
        logger.debug("feed refreshed", extra={
            "feed": self._source.name, "entries": len(content), "dropped": dropped,
            "age_ms": round(age_s * 1000)})
        return dropped

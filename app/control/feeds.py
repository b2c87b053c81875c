"""Keep a feed up to date: fetch the document, parse it, store the content.

The workers of a host share what each of them fetches. A worker first looks into the shared file
and fetches only if the document there is too old. A failed refresh keeps the last good content, and
the next try comes soon: one lost packet must not cost a whole interval.

Source: specs/003 R7-R12, R14.
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
# After a failure the next try comes after this long, and after each further one twice as long; or
# after a quarter of the interval, where that is less.
_FIRST_RETRY_S = 1.0
# Far more doublings than any interval has room for.
_MAX_DOUBLINGS = 40


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
    tell    told of each failure: the feed's name, and why
    """

    def __init__(self, source: FeedSource[Content], fetch: Callable[[], bytes],
                 saved: SavedFeed | None, clock: Callable[[], float] = time.monotonic,
                 tell: Callable[[str, str], None] = lambda *_: None) -> None:
        self._tell = tell
        self._source = source
        self._fetch = fetch
        self._saved = saved
        self._clock = clock
        self._fresh_s = source.interval_s * _FRESH_SHARE
        self._taken_at = self._tried_at = -math.inf
        # Fetches that failed in a row.
        self._failures = 0
        self._state = StateChange(logger, "feed refresh fails", "feed refresh works again",
                                  feed=source.name)

    def job(self) -> PeriodicJob:
        """Return the job that keeps the content up to date."""
        return PeriodicJob(self._source.name, self.refresh, self._wait_s)

    def _wait_s(self) -> float:
        """Return the time until the next look: at the shared file, or when the next try is due."""
        check_s = self._source.interval_s / CHECKS_PER_INTERVAL
        if not self._failures:
            return check_s
        due_s = self._tried_at + self._retry_s() - self._clock()
        return min(check_s, max(due_s, 0.0))

    def _retry_s(self) -> float:
        """Return the time from the last try to the next, seconds."""
        if not self._failures:
            return self._source.interval_s
        first_s = min(_FIRST_RETRY_S, self._source.interval_s / CHECKS_PER_INTERVAL)
        doublings = min(self._failures - 1, _MAX_DOUBLINGS)
        return min(first_s * 2 ** doublings, self._source.interval_s)

    def refresh(self) -> bool:
        """Bring the content up to date: a fetch an interval at most, sooner after a failed one.

        Returns  whether the content is fresh
        Cost     I/O; switches greenlets
        """
        self.take_saved()
        now = self._clock()
        if now - self._taken_at < self._fresh_s:
            self._failures = 0
            self._state.working()
            return True
        if now - self._tried_at < self._retry_s() * _FRESH_SHARE:
            return False
        self._tried_at = now
        # Until it has worked: whatever happens in it is a failure.
        self._failures += 1
        try:
            document = self._fetch()
            # Dated by when it was asked for: of two workers the one that asked last is right.
            count_refresh(self._source.name, self._take(document, self._clock() - now))
        except FetchFailed as error:
            count_refresh(self._source.name, None)
            self._state.failing(str(error))
            self._tell(self._source.name, str(error))
            return False
        self._failures = 0
        self._state.working()
        if self._saved is not None:
            self._saved.write(document, self._clock() - now)
        return True

    def take_saved(self) -> None:
        """Take a newer document from the shared file. Cost: one stat() if there is none; pauses."""
        saved = self._saved.read_new() if self._saved is not None else None
        if saved is None or self._clock() - saved.age_s <= self._taken_at:
            return
        try:
            self._take(saved.document, saved.age_s)
        except Exception as error:
            # Whatever the file holds, it must not keep this worker from fetching.
            why = str(error) if isinstance(error, FetchFailed) else type(error).__name__
            logger.warning("saved feed ignored", extra={"feed": self._source.name, "why": why})

    def _take(self, document: bytes, age_s: float) -> int:
        content, dropped = self._source.parse(document, pause)
        self._source.store(content, age_s)
        self._taken_at = self._clock() - age_s
        logger.debug("feed refreshed", extra={
            "feed": self._source.name, "entries": len(content), "dropped": dropped,
            "age_ms": round(age_s * 1000)})
        return dropped

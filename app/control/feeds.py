"""Fetch a feed, read it, put it in place of the last one; or keep the last one.

What one worker has fetched serves the others: each looks into the shared file first, and fetches
by itself when nothing there is new enough.

Source: specs/003 R7-R12.
"""

import logging
import math
from collections.abc import Callable, Sized
from typing import Generic, TypeVar

from app.control.saved import SavedFeed
from app.errors import FetchFailed
from app.metrics import count_refresh

logger = logging.getLogger(__name__)

Content = TypeVar("Content", bound=Sized)

# How often a worker looks whether another has fetched, between two fetches of its own.
LOOKS = 4
# A document younger than this part of the interval need not be fetched again: less than the
# whole, or the jitter of the looks would let every other turn go by.
_FRESH = 0.87


class Feed(Generic[Content]):
    """One control-plane document and what becomes of it.

    name        for the log
    fetch       returns the document's bytes; raises FetchFailed
    parse       document -> content, number of bad entries dropped; raises FetchFailed
    store       takes the new content and its age in seconds
    interval_s  between two refreshes
    saved       where documents are shared and kept; None: nowhere
    clock       returns seconds, monotonic
    """

    def __init__(self, name: str, fetch: Callable[[], bytes],
                 parse: Callable[[bytes], tuple[Content, int]],
                 store: Callable[[Content, float], None], interval_s: float,
                 saved: SavedFeed | None, clock: Callable[[], float]) -> None:
        self.name = name
        self._fetch = fetch
        self._parse = parse
        self._store = store
        self._fresh_s = interval_s * _FRESH
        self._saved = saved
        self._clock = clock
        self._taken_at = self._tried_at = -math.inf
        self._failing = False

    def refresh(self) -> bool:
        """Bring the content up to date; called LOOKS times an interval.

        Returns  whether the content is up to date; what was there stays in place otherwise
        Cost     I/O; switches greenlets

        Failure and recovery are logged once per change of state, not once per tick.
        """
        self._take_saved()
        now = self._clock()
        if now - self._taken_at < self._fresh_s:
            self._say_works()
            return True
        if now - self._tried_at < self._fresh_s:
            return False
        self._tried_at = now
        try:
            document = self._fetch()
            count_refresh(self.name, self._take(document, 0.0))
        except FetchFailed as error:
            count_refresh(self.name, None)
            if not self._failing:
                logger.warning("feed refresh fails", extra={"feed": self.name, "why": str(error)})
            self._failing = True
            return False
        self._say_works()
        if self._saved is not None:
            self._saved.write(document)
        return True

    def _say_works(self) -> None:
        if self._failing:
            logger.info("feed refresh works again", extra={"feed": self.name})
        self._failing = False

    def _take_saved(self) -> None:
        saved = None if self._saved is None else self._saved.read_new()
        if saved is None or self._saved is None:
            return
        age_s = self._saved.age_s(saved)
        if self._clock() - age_s <= self._taken_at:
            return
        try:
            self._take(saved.document, age_s)
        except FetchFailed as error:
            logger.warning("saved feed ignored", extra={"feed": self.name, "why": str(error)})

    def _take(self, document: bytes, age_s: float) -> int:
        content, dropped = self._parse(document)
        self._store(content, age_s)
        self._taken_at = self._clock() - age_s
        logger.debug("feed refreshed", extra={
            "feed": self.name, "entries": len(content), "dropped": dropped,
            "age_ms": round(age_s * 1000)})
        return dropped

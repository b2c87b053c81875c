"""Fetch a feed, read it, put it in place of the last one; or keep the last one.

Source: specs/003 R7-R10.
"""

import logging
from collections.abc import Callable, Sized
from typing import Generic, TypeVar

from app.errors import FetchFailed

logger = logging.getLogger(__name__)

Content = TypeVar("Content", bound=Sized)


class Feed(Generic[Content]):
    """One control-plane document and what becomes of it.

    name   for the log
    fetch  returns the document's bytes; raises FetchFailed
    parse  document -> content, number of bad entries dropped; raises FetchFailed
    store  takes the new content
    """

    def __init__(self, name: str, fetch: Callable[[], bytes],
                 parse: Callable[[bytes], tuple[Content, int]],
                 store: Callable[[Content], None]) -> None:
        self.name = name
        self._fetch = fetch
        self._parse = parse
        self._store = store
        self._failing = False

    def refresh(self) -> bool:
        """Fetch once.

        Returns  whether it worked; after a failure the last good content stays in place
        Cost     I/O; switches greenlets

        Failure and recovery are logged once per change of state, not once per tick.
        """
        try:
            content, dropped = self._parse(self._fetch())
        except FetchFailed as error:
            if not self._failing:
                logger.warning("feed refresh fails", extra={"feed": self.name, "why": str(error)})
            self._failing = True
            return False
        self._store(content)
        if self._failing:
            logger.info("feed refresh works again", extra={"feed": self.name})
        self._failing = False
        logger.debug("feed refreshed", extra={
            "feed": self.name, "entries": len(content), "dropped": dropped})
        return True

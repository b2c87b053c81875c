"""Jobs that run again and again, each in its own greenlet.

Source: specs/003 R7.
"""

import logging
import random
from collections.abc import Callable

from app.eventloop import Event, spawn
from app.logs import places

logger = logging.getLogger(__name__)

# Each wait is shorter or longer by up to this share, so that workers and pods that started together
# do not fetch together.
_MAX_JITTER_SHARE = 0.1


class PeriodicJob:
    """Runs a function at once, then again and again.

    name    for the log
    job     function to run; an exception is logged, and the next run comes as usual
    wait_s  from the end of one run to the start of the next, seconds; or a function that returns it
    jitter  returns a number in -1..1
    """

    def __init__(self, name: str, job: Callable[[], object], wait_s: float | Callable[[], float],
                 jitter: Callable[[], float] = lambda: random.uniform(-1, 1)) -> None:
        self._name = name
        self._job = job
        self._wait_s = wait_s
        self._jitter = jitter
        self._stopping = Event()
        self._greenlet = None

    def start(self) -> None:
        """Start the loop; a second call does nothing."""
        if self._greenlet is None:
            self._greenlet = spawn(self._loop)

    def stop(self) -> None:
        """End the loop and interrupt a run under way; a second call does nothing."""
        self._stopping.set()
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._job()
            except Exception as error:
                logger.error("periodic job failed", extra={
                    "job": self._name, "error": type(error).__name__, "where": places(error)})
            self._stopping.wait(self.next_wait_s())

    def next_wait_s(self) -> float:
        """Return the wait before the next run, seconds."""
        wait_s = self._wait_s() if callable(self._wait_s) else self._wait_s
        return wait_s * (1 + _MAX_JITTER_SHARE * self._jitter())

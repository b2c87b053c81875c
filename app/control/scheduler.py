"""Periodic jobs, each in a greenlet of its own.

Source: specs/003 R7.
"""

import logging
import random
from collections.abc import Callable

from app.eventloop import event, spawn
from app.logs import places

logger = logging.getLogger(__name__)

# Workers and pods that started together must not march in step: each wait is up to this much
# shorter or longer.
JITTER = 0.1


class PeriodicJob:
    """Runs a function at once and then again and again.

    name        for the log
    job         what to run; its failure never stops the loop
    interval_s  between the end of one run and the start of the next, seconds
    jitter      returns a number in -1..1
    """

    def __init__(self, name: str, job: Callable[[], object], interval_s: float,
                 jitter: Callable[[], float] = lambda: random.uniform(-1, 1)) -> None:
        self._name = name
        self._job = job
        self._interval_s = interval_s
        self._jitter = jitter
        self._stopping = event()
        self._greenlet = None

    def start(self) -> None:
        """Start the loop. Starting twice runs one loop."""
        if self._greenlet is None:
            self._greenlet = spawn(self._loop)

    def stop(self) -> None:
        """End the loop; a run under way is interrupted. Stopping twice is harmless."""
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
        """Return how long to wait before the next run, seconds."""
        return self._interval_s * (1 + JITTER * self._jitter())

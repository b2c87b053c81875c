"""How a worker ends: nothing new, time for what is under way, and a cut while there is still time.

The master kills a worker that outlives the graceful timeout, and what is killed cleans nothing up
and logs nothing. So what would outlive it is cut here, some seconds earlier.

Source: specs/007 R3, R4.
"""

import logging
import math
import time
from collections.abc import Callable, Collection
from typing import Protocol

from app.eventloop import FairSocket
from app.inflight import InFlight

logger = logging.getLogger(__name__)

# Connections are taken on for a moment while there is something under way: a balancer that asks
# gets to hear of the end, and at a reload the new workers are up by then.
_ACCEPTS_ON_S = 1.0
# A connection without a request for so long is closed. Not sooner: its peer may be about to send
# one, and could not tell whether it has been served. The nginx of deploy/ gives an idle connection
# up after 4 s, so that here it is never the first.
_IDLE_S = 6.0
# Before the end of the grace: requests are cut; a third of this later, whatever is left.
_CUT_EARLIER_S = 3.0


class Listening(Protocol):
    """What accepts connections; see eventloop.serve."""

    def close(self) -> None:
        """Accept no more."""


class Drain:
    """The end of one worker, step by step; begins when it is made.

    in_flight    its requests
    connections  of its clients, as they are at each moment
    probes       connections by the health address, the same way
    servers      where it accepts clients
    probed       where it accepts probes: closed when all else is over
    grace_s      after this the master kills the worker
    clock        returns seconds, monotonic
    """

    def __init__(self, in_flight: InFlight, connections: Collection[FairSocket],
                 probes: Collection[FairSocket], servers: list[Listening],
                 probed: list[Listening], grace_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = in_flight
        self._connections = connections
        self._probes = probes
        self._servers = servers
        self._probed = probed
        self._clock = clock
        now = clock()
        # A short grace has shorter parts.
        self._accepts_until = now + min(_ACCEPTS_ON_S, grace_s / 4)
        self._idle_s = min(_IDLE_S, grace_s / 4)
        earlier = min(_CUT_EARLIER_S, grace_s / 2)
        self._cut_at = now + grace_s - earlier
        self._hang_up_at = self._cut_at + earlier / 3
        in_flight.draining = True
        logger.info("draining", extra={"requests": len(in_flight)})

    def step(self) -> bool:
        """Do what is due by now.

        Returns  whether everything is over
        Cost     O(connections), no switch
        """
        now, served = self._clock(), bool(self._connections)
        if now >= self._accepts_until or not served:
            _close(self._servers)
        self._end_idle(self._connections, now - self._idle_s)
        if now >= self._cut_at:
            self._cut_at = math.inf
            self._cut()
        if now >= self._hang_up_at:
            for connection in (*self._connections, *self._probes):
                connection.hang_up()
        if served:
            return False
        _close(self._probed)
        self._end_idle(self._probes, now)
        return not self._probes

    @staticmethod
    def _end_idle(connections: Collection[FairSocket], since: float) -> None:
        for connection in connections:
            if connection.idle_since is not None and connection.idle_since <= since:
                connection.hear_no_more()

    def _cut(self) -> None:
        logger.warning("cutting requests", extra={"requests": len(self._in_flight)})
        self._in_flight.cut()
        for connection in (*self._connections, *self._probes):
            # A request on its way, a peer that takes no answer; those just cut get theirs first.
            if connection.served_by not in self._in_flight:
                connection.hang_up()


def _close(servers: list[Listening]) -> None:
    while servers:
        servers.pop().close()

"""How a worker ends: it accepts nothing new, gives time to what is under way, then cuts it.

The master kills a worker that outlives the graceful timeout. A killed process cleans nothing up
and logs nothing. So the worker itself cuts what would outlive it, some seconds earlier.

Source: specs/007 R3, R4.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

from app.client_socket import ClientSocket
from app.inflight import InFlight

logger = logging.getLogger(__name__)

# While requests are under way, connections are accepted a moment longer: a balancer that asks
# learns of the end, and after a reload the new workers are up by then.
_ACCEPTS_ON_S = 1.0
# A connection without a request for so long is closed. A client that sends a request into a closing
# connection cannot tell whether it was served, so this is longer than a client in front keeps idle
# connections (the nginx of deploy/: 4 s).
_IDLE_S = 6.0
# Requests are cut so long before the end of the grace; a third of this later all else is cut.
_CUT_EARLIER_S = 3.0


class Server(Protocol):
    """What accepts connections; see eventloop.serve."""

    def close(self) -> None:
        """Accept no more."""


@dataclasses.dataclass
class Address:
    """One address that a worker listens on.

    server       accepts there; None: there is no such address, or it is closed
    connections  accepted there and still open
    """

    server: Server | None = None
    connections: set[ClientSocket] = dataclasses.field(default_factory=set)

    def close(self) -> None:
        """Accept no more. Closing twice is harmless."""
        server, self.server = self.server, None
        if server is not None:
            server.close()

    def end_idle(self, since: float) -> None:
        """Close the connections that have been idle since then, seconds on the monotonic clock."""
        for connection in self.connections:
            if connection.idle_since is not None and connection.idle_since <= since:
                connection.close_if_idle()


class Drain:
    """The end of one worker, step by step; begins when it is made.

    in_flight  the worker's requests
    clients    where it serves clients
    probes     where it serves probes: this address closes when all else is over
    grace_s    after this the master kills the worker
    clock      returns seconds, monotonic
    """

    def __init__(self, in_flight: InFlight, clients: Address, probes: Address, grace_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = in_flight
        self._clients = clients
        self._probes = probes
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
        now, serves = self._clock(), bool(self._clients.connections)
        if now >= self._accepts_until or not serves:
            self._clients.close()
        self._clients.end_idle(now - self._idle_s)
        if now >= self._cut_at:
            self._cut_at = math.inf
            self._cut()
        if now >= self._hang_up_at:
            for connection in self._all_connections():
                connection.hang_up()
        if serves:
            return False
        self._probes.close()
        self._probes.end_idle(now)
        return not self._probes.connections

    def _all_connections(self) -> tuple[ClientSocket, ...]:
        return *self._clients.connections, *self._probes.connections

    def _cut(self) -> None:
        logger.warning("cutting requests", extra={"requests": len(self._in_flight)})
        self._in_flight.cut()
        for connection in self._all_connections():
            # A request that was just cut still gets its answer; these are requests that have not
            # arrived whole and clients that read no answer.
            if connection.served_by not in self._in_flight:
                connection.hang_up()

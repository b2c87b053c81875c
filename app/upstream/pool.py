"""Idle connections to one endpoint.

Source: specs/002 R14, R32, R57, specs/006 W9.
"""

import time

from app.dialing.dialer import Dialed
from app.upstream.connection import Connection
from app.upstream.endpoint import Endpoint


class Pool:
    """Connections that wait for their next request, the one used last first.

    One whose address the name has left is not used again.

    There are never more than requests were under way at a time, so their number needs no bound.

    endpoint    of the connections
    max_idle_s  one that has been idle this long is not used again
    max_age_s   one that was opened this long ago is not used again
    """

    def __init__(self, endpoint: Endpoint, max_idle_s: float, max_age_s: float) -> None:
        self._endpoint = endpoint
        self._max_idle_s, self._max_age_s = max_idle_s, max_age_s
        self._idle: list[Connection] = []
        # Where the connection given back last is connected to; None: the name was asked for since.
        self._used: Dialed | None = None

    def take(self) -> Connection | None:
        """Take an idle connection that is still good; None if there is none. No switch."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if self._is_good(connection, now):
                return connection
            connection.close()
        return None

    def open(self) -> Connection:
        """Open a connection. Raises and costs what Endpoint.connect does."""
        return Connection(*self._endpoint.connect())

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose response has been read to its end."""
        connection.idle_since, self._used = time.monotonic(), connection.dialed
        self._idle.append(connection)

    def drop_stale(self) -> None:
        """Close the idle connections that the upstream has closed, and those not to be used again.

        `take` looks only at those it hands out. The others would stay half closed, a descriptor
        each, until as many requests came at once again.
        Cost: 2 µs for each idle connection, and a look-up of the name, which switches greenlets.
        """
        # New connections alone would ask for the name, and none may be needed. A busy connection is
        # hardly ever idle at this moment.
        if dialed := self._idle[-1].dialed if self._idle else self._used:
            self._used = None
            self._endpoint.look_up(dialed)
        now = time.monotonic()
        self._keep({connection for connection in self._idle if self._is_good(connection, now)})

    def drop_opened_before(self, moment: float) -> None:
        """Close the idle connections opened before a moment: they may all have died unseen."""
        self._keep({connection for connection in self._idle if connection.opened_at >= moment})

    def _is_good(self, connection: Connection, now: float) -> bool:
        return (now - connection.idle_since < self._max_idle_s
                and now - connection.opened_at < self._max_age_s
                and not self._endpoint.has_left(connection.dialed) and connection.is_quiet())

    def _keep(self, kept: set[Connection]) -> None:
        for connection in self._idle:
            if connection not in kept:
                connection.close()
        self._idle = [connection for connection in self._idle if connection in kept]

"""Idle connections to one endpoint.

Source: specs/002 R14, specs/006 W9.
"""

from app.upstream.connection import Connection
from app.upstream.endpoint import Endpoint


class Pool:
    """Connections that wait for their next request, the one used last first.

    There are never more than requests were under way at a time, so their number needs no bound.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: list[Connection] = []

    def take(self) -> Connection | None:
        """Take an idle connection on which nothing has come; None if there is none. No switch."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    def open(self) -> Connection:
        """Open a connection. Raises and costs what Endpoint.connect does."""
        return Connection(self._endpoint.connect())

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose response has been read to its end."""
        self._idle.append(connection)

    def drop_stale(self) -> None:
        """Close the idle connections that the upstream has closed.

        `take` looks only at those it hands out. The others would stay half closed, a descriptor
        each, until as many requests came at once again.
        Cost: 1 µs for each idle connection; no switch.
        """
        stale = {connection for connection in self._idle if not connection.is_quiet()}
        self._idle = [connection for connection in self._idle if connection not in stale]
        for connection in stale:
            connection.close()

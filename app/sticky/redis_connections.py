"""Connections to Redis, opened beside requests.

To connect, shake hands, authenticate and select a database takes several round trips. A request has
no time for that: it takes a connection that is ready, or waits for one that another gives back.

No connection is believed good for ever: every few seconds all are replaced by new ones, so a name
that moves and a primary that has become a replica are left. If no new one can be opened, those that
there are go on.

Source: specs/005 R9, R10.
"""

import collections
import functools
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.connection import parse_url

from app.dialing.dialer import Dialed, Dialer
from app.eventloop import Deadline, Empty, LifoQueue, readable, spawn

# Name look-up, connecting to one of the addresses, TLS, AUTH and SELECT.
_OPEN_S = 2.0
# All connections are this old at most, plus the time to open new ones and the caller's second. A
# look-up is 5 s old at most (app/dialing/names.py), so a name that moves is followed within 10 s.
_REPLACE_AFTER_S = 3.0
# How many replacements look back at how many connections were in use at once: a minute, so that a
# burst finds as many as the one before it.
_PERIODS = 20
_RETRY_S = 1.0
# As many as there may be requests asking.
MAX_CONNECTIONS = 32


class OpeningTookTooLong(Exception):
    """A connection was not ready in time."""


class _DialedConnection(redis.Connection):
    """A connection to the first of a host's addresses that answers.

    dialed  what it is connected to, once it has reached an address
    """

    dialed: Dialed | None = None

    def __init__(self, dialer: Dialer, **options: Any) -> None:
        self._dialer = dialer
        super().__init__(**options)

    def _connect(self) -> socket.socket:
        sock, self.dialed = self._dialer.connect(self.host, self.port)
        sock.settimeout(self.socket_timeout)
        return sock


class _TlsConnection(redis.SSLConnection, _DialedConnection):
    """The same with a TLS context of ours; the stock one loads all certificates each time."""

    def __init__(self, tls: ssl.SSLContext, **options: Any) -> None:
        self._tls = tls
        super().__init__(**options)

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        return self._tls.wrap_socket(sock, server_hostname=self.host)


class RedisConnections:
    """The connections of one worker.

    url         redis://, rediss:// or unix://
    tls         context for rediss://
    dialer      connects to a host
    on_failure  told of each connection that could not be opened
    clock       returns seconds, monotonic
    """

    def __init__(self, url: str, tls: ssl.SSLContext, dialer: Dialer,
                 on_failure: Callable[[Exception], None],
                 clock: Callable[[], float] = time.monotonic) -> None:
        # RESP 2 and no CLIENT SETINFO: nothing is sent to a new connection but AUTH and SELECT.
        self._options = parse_url(url) | {
            "decode_responses": True, "encoding_errors": "replace", "protocol": 2,
            "driver_info": None, "socket_timeout": _OPEN_S}
        kind = self._options.pop("connection_class", redis.Connection)
        self._kind: Callable[..., Any] = kind
        if kind is redis.SSLConnection:
            self._kind = functools.partial(_TlsConnection, tls, dialer=dialer)
        elif kind is redis.Connection:
            self._kind = functools.partial(_DialedConnection, dialer)
        self._dialer = dialer
        self._on_failure = on_failure
        self._clock = clock
        self._idle: LifoQueue = LifoQueue()
        self._current: set[Any] = set()
        self._in_use = self._opening = 0
        # The most that were in use at once, for each period; the last is the current one.
        self._most_in_use = collections.deque([0], maxlen=_PERIODS)
        self._replace_at = self._open_at = 0.0

    def take(self) -> Any:
        """Return a connection that is ready, to be given back or dropped; None if there is none.

        Cost  no switch if one is idle; else waits for another request's, as long as there are any
        """
        while True:
            try:
                connection = self._idle.get_nowait()
            except Empty:
                self._open_soon()
                if not self._in_use:
                    return None
                connection = self._idle.get()
            if connection in self._current and _is_alive(connection):
                self._in_use += 1
                self._most_in_use[-1] = max(self._most_in_use[-1], self._in_use)
                return connection
            self._close(connection)

    def give_back(self, connection: Any) -> None:
        """Take a connection back whose answer was read."""
        self._in_use -= 1
        if connection in self._current:
            self._idle.put(connection)
        else:
            self._close(connection)

    def drop(self, connection: Any) -> None:
        """Close a connection that failed, or whose answer was not read."""
        self._in_use -= 1
        self._close(connection)

    def keep(self) -> None:
        """Replace the connections when they are old, by as many as were in use at once of late.

        Cost  I/O; switches greenlets
        """
        if self._clock() < self._replace_at:
            return
        wanted, fresh = max(1, *self._most_in_use), set[Any]()
        try:
            for _ in range(wanted):
                fresh.add(self._open())
        except Exception as error:
            for connection in fresh:
                connection.disconnect()
            self._on_failure(error)
            return
        self._replace_at = self._clock() + _REPLACE_AFTER_S
        self.close()
        # Those in use are closed when they are given back.
        self._most_in_use.append(self._in_use)
        self._current = fresh
        for connection in fresh:
            self._idle.put(connection)

    def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle.qsize():
            self._close(self._idle.get_nowait())

    def _open_soon(self) -> None:
        """Open one more, unless that has just failed or there are enough.

        The first is opened alone: more would all fail, or all be ready, when it is.
        """
        if (self._in_use + self._opening < MAX_CONNECTIONS and self._clock() >= self._open_at
                and self._opening <= self._in_use):
            self._opening += 1
            spawn(self._open_one)

    def _open_one(self) -> None:
        try:
            connection = self._open()
        except Exception as error:
            self._open_at = self._clock() + _RETRY_S
            self._on_failure(error)
        else:
            self._current.add(connection)
            self._idle.put(connection)
        finally:
            self._opening -= 1

    def _open(self) -> Any:
        connection = self._kind(**self._options)
        try:
            with Deadline(_OPEN_S, OpeningTookTooLong):
                connection.connect()
        except BaseException:
            if dialed := getattr(connection, "dialed", None):
                self._dialer.failed(dialed)
            connection.disconnect()
            raise
        return connection

    def _close(self, connection: Any) -> None:
        self._current.discard(connection)
        connection.disconnect()


def has_answered(connection: Any) -> bool:
    """Say whether bytes have come that nobody has had the time to read. Cost: a system call."""
    sock = connection._sock
    return sock is not None and readable(sock)


def _is_alive(connection: Any) -> bool:
    """Say whether nothing has come on an idle connection: neither an end nor an answer too many."""
    try:
        return not connection.can_read()
    except Exception:
        return False

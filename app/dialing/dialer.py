"""Connects to the first of a host's addresses that answers.

Source: specs/002 R30, R57; RFC 8305.
"""

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from app.dialing.liveness import notice_vanished
from app.dialing.names import Address, Names

# RFC 8305 section 8: the "Connection Attempt Delay".
_DELAY_S = 0.25
# An attempt that lasted this long when the race ends is too slow: the next one has begun, or would
# have. Timers may fire a little early.
_SLOW_S = 0.2

# Whoever looks for a name that moves asks a little less often than this.
_JUST_NOW_S = 4.0


class Dialed(NamedTuple):
    """A host as it was asked for, without brackets, and its address that was reached."""

    host: str
    port: int
    address: Address


class Dialer:
    """Makes TCP connections; one for each worker, which then shares what it knows of addresses."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def connect(self, host: str, port: int) -> tuple[socket.socket, Dialed]:
        """Connect to a host; the caller bounds the time.

        host     a name or an address; an IPv6 address may be in brackets
        Returns  a connected socket without a timeout, and what it is connected to
        Raises   OSError of the last address tried
        Cost     I/O; switches greenlets
        """
        host = host.strip("[]")
        race = _Race(self._to_try(host, port))
        try:
            sock, address = race.run()
            return sock, Dialed(host, port, address)
        finally:
            for address in race.close():
                self._names.failed(host, port, address)

    def failed(self, dialed: Dialed) -> None:
        """Take note that what followed on a connection to an address failed, such as TLS."""
        self._names.failed(*dialed)

    def look_up(self, dialed: Dialed) -> None:
        """Ask for a name's addresses, unless that was done just now; may switch greenlets."""
        with contextlib.suppress(OSError):
            self._names.addresses(dialed.host, dialed.port, _JUST_NOW_S)

    def has_left(self, dialed: Dialed) -> bool:
        """Say whether a name is not at the address any more that was reached by it; no switch."""
        return self._names.has_left(*dialed)

    def _to_try(self, host: str, port: int) -> Iterator[Address]:
        known = self._names.addresses(host, port)
        yield from known
        # None of them has answered by now: the name may have moved.
        yield from (address for address in self._names.addresses(host, port, max_age_s=0)
                    if address not in known)


class _Race:
    """Attempts to connect that run side by side, each begun a moment after the one before."""

    def __init__(self, addresses: Iterator[Address]) -> None:
        self._addresses = addresses
        self._poll = select.poll()
        # Descriptor -> socket, address, when it began.
        self._running: dict[int, tuple[socket.socket, Address, float]] = {}
        self._failed: list[Address] = []
        self._error = OSError(errno.EADDRNOTAVAIL, "no address")

    def run(self) -> tuple[socket.socket, Address]:
        """Return the first connection. Raises OSError when no attempt is left."""
        address = next(self._addresses, None)
        while address is not None or self._running:
            if address is not None:
                self._begin(address)
            wait_ms = None if address is None else _DELAY_S * 1000
            for descriptor, _ in self._poll.poll(wait_ms) if self._running else ():
                if won := self._judge(descriptor):
                    return won
            address = next(self._addresses, None) if address is not None else None
        raise self._error

    def _begin(self, address: Address) -> None:
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:
            # This host does not speak the family.
            self._error = error
            return
        self._running[sock.fileno()] = sock, address, time.monotonic()
        self._poll.register(sock.fileno(), select.POLLOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_vanished(sock)
        sock.setblocking(False)
        code = sock.connect_ex(address.sockaddr)
        if code not in (0, errno.EINPROGRESS):
            self._give_up(sock.fileno(), code)

    def _judge(self, descriptor: int) -> tuple[socket.socket, Address] | None:
        sock, address, _ = self._running[descriptor]
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._give_up(descriptor, code)
            return None
        self._forget(descriptor)
        sock.settimeout(None)
        return sock, address

    def _give_up(self, descriptor: int, code: int) -> None:
        sock, address = self._forget(descriptor)
        sock.close()
        self._failed.append(address)
        self._error = OSError(code, os.strerror(code))

    def _forget(self, descriptor: int) -> tuple[socket.socket, Address]:
        self._poll.unregister(descriptor)
        sock, address, _ = self._running.pop(descriptor)
        return sock, address

    def close(self) -> list[Address]:
        """End what is left; return the addresses that failed or were too slow to wait for."""
        now = time.monotonic()
        for descriptor, (_, _, began) in list(self._running.items()):
            sock, address = self._forget(descriptor)
            sock.close()
            if now - began >= _SLOW_S:
                self._failed.append(address)
        return self._failed

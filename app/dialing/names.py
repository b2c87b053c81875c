"""Addresses of host names, as far as they are known.

A look-up blocks a thread of gevent's pool, which has ten, for as long as the resolver is silent.
So there is one look-up of a name at a time. Everybody who needs the name shares its result, and it
goes on when nobody waits for it any more.

Source: specs/002 R30, R31, R57.
"""

import itertools
import math
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from app.eventloop import Greenlet, spawn

# A result is used for this long: a name that moves is followed.
_FRESH_S = 5.0
# A known address is held back this long for a newer one.
_PATIENCE_S = 0.25
# An address that failed is tried after all others for this long.
_FAILED_S = 60.0
# A resolver may say for a moment that a name has no address. Its addresses are kept for this long
# from when it began to.
_DENIED_S = 30.0
# An address that has been in no answer for this long is the name's no more. Some resolvers give a
# part of a name's addresses each time.
_LEFT_S = 8.0
# The resolver has answered, and it says that there is no address.
_NO_ADDRESS = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY)


class Address(NamedTuple):
    """A socket address: `sockaddr` is what connect() takes for the family."""

    family: int
    sockaddr: Any


class Names:
    """The names that this process connects to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._names: dict[tuple[str, int], _Name] = {}

    def addresses(self, host: str, port: int, max_age_s: float = _FRESH_S) -> list[Address]:
        """Return a host's addresses, in the order in which to try them.

        host       a name or an address, without brackets
        max_age_s  an older result is looked up again; while the resolver is silent, or says that it
                   cannot tell, or for half a minute that there is none, the last good one is used
        Returns    at least one; the families take turns; those that failed within a minute are last
        Raises     OSError
        Cost       none, or a look-up: switches greenlets
        """
        name, now = self._name(host, port), self._clock()
        if name.look_up is None and (not name.known or now - name.asked_at >= max_age_s):
            name.asked_at, name.look_up = now, spawn(self._ask, name, host, port, now)
        if name.look_up is not None:
            patience_s = name.asked_at + _PATIENCE_S - now
            if not name.known:
                name.look_up.join()
            elif patience_s > 0:
                name.look_up.join(patience_s)
        if not name.known:
            raise socket.gaierror(*name.refusal)
        failed = [a for a in name.known if now - name.failed_at.get(a, -math.inf) < _FAILED_S]
        return [a for a in name.known if a not in failed] + sorted(
            failed, key=name.failed_at.__getitem__)

    def failed(self, host: str, port: int, address: Address) -> None:
        """Have an address tried last for a minute."""
        self._name(host, port).failed_at[address] = self._clock()

    def _name(self, host: str, port: int) -> "_Name":
        if (name := self._names.get((host, port))) is None:
            name = self._names[host, port] = _Name()
        return name

    def has_left(self, host: str, port: int, address: Address) -> bool:
        """Say whether a name has moved away from an address; no look-up, 0.5 µs."""
        name = self._name(host, port)
        return name.answered_at - name.seen_at.get(address, -math.inf) >= _LEFT_S

    @staticmethod
    def _ask(name: "_Name", host: str, port: int, now: float) -> None:
        try:
            found = [Address(family, sockaddr) for family, _, _, _, sockaddr
                     in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            # Text that is no name cannot be encoded as one.
            name.refusal = error.args if isinstance(error, OSError) else (
                socket.EAI_NONAME, "not a host name")
            if name.refusal[0] in _NO_ADDRESS:
                name.denied_at = min(name.denied_at, now)
                if now - name.denied_at >= _DENIED_S:
                    name.known = ()
        else:
            name.known, name.denied_at, name.answered_at = _in_turn(found), math.inf, now
            name.seen_at = {a: at for a, at in name.seen_at.items() if now - at < _LEFT_S}
            name.seen_at.update(dict.fromkeys(found, now))
            name.failed_at = {a: at for a, at in name.failed_at.items() if a in found}
        finally:
            name.look_up = None


class _Name:
    """What is known of one name.

    known        the addresses of the last good answer
    failed_at    address -> when it failed, seconds on the clock
    seen_at      address -> when it was in an answer, for those of late
    answered_at  when the look-up of the last good answer began
    denied_at    when the resolver began to say that there is no address
    asked_at     when the last look-up began
    look_up      the one under way
    refusal      the arguments of the last gaierror
    """

    def __init__(self) -> None:
        self.known: tuple[Address, ...] = ()
        self.failed_at: dict[Address, float] = {}
        self.seen_at: dict[Address, float] = {}
        self.asked_at = self.answered_at = -math.inf
        self.denied_at = math.inf
        self.look_up: Greenlet | None = None
        self.refusal: tuple[Any, ...] = (socket.EAI_AGAIN, "no answer")


def _in_turn(addresses: list[Address]) -> tuple[Address, ...]:
    """Let the families take turns, beginning with the resolver's first (RFC 8305 section 4)."""
    first = [a for a in addresses if a.family == addresses[0].family]
    others = [a for a in addresses if a.family != addresses[0].family]
    return tuple(a for pair in itertools.zip_longest(first, others) for a in pair if a)

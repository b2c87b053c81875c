"""Who is calling, as a digest that says nothing about them.

The bearer token names a client; without one, the address does. Many people may share a token: what
a request says of its session or its prompt cache then tells their conversations apart. All go
through a keyed digest at once, so that no token and no address is ever kept, and no one without the
key can test a guess.

Source: specs/005 R1, R2, R14.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping

from app.config_parsers import TrustedPeers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_BEARER = re.compile(r"bearer +(\S.*)", re.IGNORECASE)
_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]+)\](?::\d{1,5})?|(?P<v4>[0-9.]+):\d{1,5}")
_KEY_BYTES = 64
_UNIX_PEER = "unix"
# A conversation is known by so many bytes of what names it.
_MOST_SESSION_BYTES = 512


class ClientKeys:
    """Derives the client key of a request.

    secret           key of the digest; replicas that share a sticky store share it
    trusted          peers whose X-Forwarded-For is believed; None: nobody's is
    session_headers  header fields that name a conversation; the first that is there counts
    """

    def __init__(self, secret: str, trusted: TrustedPeers | None,
                 session_headers: Iterable[str] = ()) -> None:
        # blake2b takes at most 64 bytes of key: a longer secret is condensed first.
        self._key = hashlib.blake2b(secret.encode()).digest()[:_KEY_BYTES]
        self._trusted = trusted
        self._session_fields = tuple(
            "HTTP_" + name.upper().replace("-", "_") for name in session_headers)

    def derive(self, environ: Mapping[str, str], prompt_cache_key: str = "") -> str:
        """Return the client key of a request.

        environ           HTTP_AUTHORIZATION, HTTP_X_FORWARDED_FOR, REMOTE_ADDR and the session
                          headers are read
        prompt_cache_key  of the body; counts where no session header is there
        Returns           32 hex digits
        Cost              some microseconds, no I/O
        """
        bearer = _BEARER.fullmatch(environ.get("HTTP_AUTHORIZATION", ""))
        identity = f"token {bearer[1]}" if bearer else f"address {self._address(environ)}"
        named = identity.encode("latin-1", "replace")
        session = self._session(environ, prompt_cache_key)
        if session:
            # No header field holds a NUL, so no token can look like another and its session.
            named += b"\0" + session
        return hashlib.blake2b(named, key=self._key, digest_size=16).hexdigest()

    def _session(self, environ: Mapping[str, str], prompt_cache_key: str) -> bytes:
        for field in self._session_fields:
            value = environ.get(field)
            if value:
                return value.encode("latin-1", "replace")[:_MOST_SESSION_BYTES]
        return prompt_cache_key[:_MOST_SESSION_BYTES].encode()[:_MOST_SESSION_BYTES]

    def _address(self, environ: Mapping[str, str]) -> str:
        peer = environ.get("REMOTE_ADDR", "")
        if not self._trusts(peer):
            return peer or _UNIX_PEER
        leftmost = environ.get("HTTP_X_FORWARDED_FOR", "").partition(",")[0].strip()
        return str(_parsed(leftmost) or peer or _UNIX_PEER)

    def _trusts(self, peer: str) -> bool:
        if self._trusted is None:
            return False
        if not peer:
            return self._trusted.unix
        address = _parsed(peer)
        return address is not None and any(address in net for net in self._trusted.networks)


def _parsed(text: str) -> Address | None:
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((match["v6"] or match["v4"]) if match else text)
    except ValueError:
        return None
    # The same host must not count twice because a socket was dual-stack.
    return getattr(address, "ipv4_mapped", None) or address

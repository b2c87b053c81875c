"""urllib3's connections on top of our own dialing.

urllib3 goes on doing a proxy's tunnel and TLS, in every combination. It gets a socket that is
connected already: one method is replaced for that.

Source: specs/002 R10, R30.
"""

import socket
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection

from app.dialing.dialer import Dialed, Dialer


def connectors(dialer: Dialer) -> dict[str, Any]:
    """Return the connection classes for http and https, by scheme.

    An instance's `dialed` is what it is connected to, once it has reached an address.
    Connecting raises OSError where none can be reached.
    """
    class Plain(HTTPConnection):
        dialed: Dialed | None = None

        def _new_conn(self) -> socket.socket:
            sock, self.dialed = dialer.connect(self._dns_host, self.port)
            return sock

    class Secure(Plain, HTTPSConnection):
        pass

    return {"http": Plain, "https": Secure}

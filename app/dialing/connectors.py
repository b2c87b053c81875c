"""urllib3's connections on top of our own dialing.

urllib3 goes on doing a proxy's tunnel and TLS, in every combination. It gets a socket that is
connected already: one method is replaced for that.

Source: specs/002 R10, R30.
"""

import socket
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection

from app.dialing.dialer import Dialer
from app.dialing.names import Address


def connectors(dialer: Dialer) -> dict[str, Any]:
    """Return the connection classes for http and https, by scheme.

    An instance's `dialed` is what Dialer.failed takes, once it has reached an address.
    Connecting raises OSError where none can be reached.
    """
    class Dialed(HTTPConnection):
        dialed: tuple[str, int, Address] | None = None

        def _new_conn(self) -> socket.socket:
            sock, address = dialer.connect(self._dns_host, self.port)
            self.dialed = self._dns_host, self.port, address
            return sock

    class DialedSecure(Dialed, HTTPSConnection):
        pass

    return {"http": Dialed, "https": DialedSecure}

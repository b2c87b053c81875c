"""Where the upstream is, and how a connection to it is made.

app.dialing makes the TCP connection, urllib3 a proxy's tunnel and TLS on it. Nothing else of
urllib3 is used.

Source: specs/002 R10, R13, R30; specs/006 W4.
"""

import socket
import ssl
import traceback
from typing import Any
from urllib.parse import unquote

from urllib3.connection import ProxyConfig
from urllib3.exceptions import ConnectTimeoutError, HTTPError
from urllib3.util import Url, make_headers, parse_url

from app.dialing.connectors import connectors
from app.dialing.dialer import Dialed, Dialer
from app.eventloop import Deadline

_HTTPS_PORT = 443


class Endpoint:
    """One base URL, reached directly or through a proxy.

    base_url           http or https, with an optional path
    proxy              URL of an http or https proxy; empty: none
    tls                context for TLS to the upstream and to the proxy
    connect_timeout_s  total for look-up, connect, tunnel and TLS
    dialer             makes TCP connections
    """

    def __init__(self, base_url: str, proxy: str, tls: ssl.SSLContext,
                 connect_timeout_s: float, dialer: Dialer) -> None:
        self._url = parse_url(base_url)
        self._proxy = parse_url(proxy) if proxy else None
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._dialer, self._connectors = dialer, connectors(dialer)
        self.look_up, self.has_left = dialer.look_up, dialer.has_left
        credentials = _proxy_credentials(self._proxy)
        self._tunnels = self._proxy is not None and self._url.scheme == "https"
        self._tunnel_headers = credentials if self._tunnels else {}
        forwards = self._proxy is not None and not self._tunnels
        # A proxy that forwards a request is told the whole URL in its request line.
        host = self._url.netloc or ""
        prefix = f"http://{host}" if forwards else ""
        self._target_prefix = prefix + (self._url.path or "").rstrip("/")
        self.headers = {"Host": host, **(credentials if forwards else {})}

    def target(self, path: str) -> str:
        """Return what the request line names for a path below the base URL."""
        return self._target_prefix + path

    def connect(self) -> tuple[socket.socket, Dialed]:
        """Look up, connect and, for https, shake hands, within the connect timeout.

        Returns  a connected socket without a timeout, and what it is connected to: the upstream, or
                 the proxy
        Raises   OSError, urllib3's HTTPError, http.client's HTTPException
        Cost     I/O; switches greenlets
        """
        connector = self._connector()
        try:
            with Deadline(self._connect_timeout_s,
                          lambda: ConnectTimeoutError("connect timeout")):
                connector.connect()
        except BaseException as error:
            if isinstance(error, (OSError, HTTPError)):
                self._distrust(connector)
            connector.close()
            # In the middle of a handshake only the frames below know the socket. It would stay
            # open until the garbage collector came by.
            traceback.clear_frames(error.__traceback__)
            raise
        sock: socket.socket = connector.sock
        if hasattr(sock, "suppress_ragged_eofs"):
            # An end without close_notify may be anybody's doing. It must not pass for the end of a
            # body that lasts until the connection closes.
            sock.suppress_ragged_eofs = False
        return sock, connector.dialed

    def _distrust(self, connector: Any) -> None:
        """Try an address last that took the connection and then failed to shake hands."""
        # Behind a proxy's address it may be anybody's failure.
        if connector.dialed is not None and self._proxy is None:
            self._dialer.failed(connector.dialed)

    def _connector(self) -> Any:
        first = self._proxy or self._url
        host, port, options = first.host or "", first.port, dict[str, Any](timeout=None)
        if "https" not in (first.scheme, self._url.scheme):
            return self._connectors["http"](host, port, **options)
        proxy_tls = ProxyConfig(self._tls, False, None, None)
        connector = self._connectors["https"](
            host, port or (80 if first.scheme == "http" else _HTTPS_PORT),
            ssl_context=self._tls, proxy_config=proxy_tls, **options)
        if self._tunnels:
            connector.set_tunnel(self._url.host or "", self._url.port or _HTTPS_PORT,
                                 self._tunnel_headers, first.scheme or "http")
        return connector


def _proxy_credentials(proxy: Url | None) -> dict[str, str]:
    if proxy is None or not proxy.auth:
        return {}
    user, _, password = proxy.auth.partition(":")
    basic = make_headers(proxy_basic_auth=f"{unquote(user)}:{unquote(password)}")
    return {"Proxy-Authorization": basic["proxy-authorization"]}

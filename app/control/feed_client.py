"""Gets a feed over HTTP.

Source: specs/003 R10, R15.
"""

import ssl
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from app.dialing.connectors import connectors
from app.dialing.dialer import Dialer
from app.errors import FetchFailed
from app.eventloop import Deadline

_PIECE = 64 * 1024
# What is asked for, and what is none. Of another one the bytes would be taken for the document.
_CODINGS = frozenset(("gzip", "x-gzip", "deflate", "identity", ""))
_MOST_SHOWN = 20


def feed_fetcher(url: str, *, proxy: str, tls: ssl.SSLContext, dialer: Dialer, timeout_s: float,
                 max_bytes: int) -> Callable[[], bytes]:
    """Return a function that gets a feed's document.

    url        http or https
    proxy      URL of an http or https proxy; empty: none
    tls        context for https
    dialer     makes TCP connections
    timeout_s  total for one fetch
    max_bytes  a larger document is refused
    Returns    a function: no argument, the document's bytes; raises FetchFailed

    Status 200 only, no redirects, no cookies, nothing of any client and of the environment. Each
    fetch has a connection of its own: one that is kept from one fetch to the next may have been
    forgotten by the network meanwhile, and a fetch can be sent no better than on a new one.
    """
    session = _session(proxy, tls, dialer)

    def fetch() -> bytes:
        try:
            with Deadline(timeout_s, lambda: FetchFailed(
                    f"no complete answer within {timeout_s:g} s")), session.get(
                    url, stream=True, allow_redirects=False, timeout=timeout_s) as response:
                return _read(response, max_bytes)
        except requests.RequestException as error:
            raise FetchFailed(type(error).__name__) from error
        finally:
            # The connection goes. The session stays: to make one leaves garbage.
            session.close()
            session.cookies.clear()

    return fetch


def _session(proxy: str, tls: ssl.SSLContext, dialer: Dialer) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.headers.update({"Connection": "close", "Accept-Encoding": "gzip, deflate"})
    session.hooks["response"] = [_check_status]
    session.proxies = {"http": proxy, "https": proxy} if proxy else {}
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(tls, dialer))
    return session


class _Adapter(HTTPAdapter):
    """An adapter with one TLS context for all connections, and our own dialing below them."""

    def __init__(self, tls: ssl.SSLContext, dialer: Dialer) -> None:
        self._tls = tls
        self._connectors = connectors(dialer)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls,
                                         **kwargs)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = self._connectors[pool.scheme]
        return pool

    def cert_verify(self, conn: Any, *_: Any, **__: Any) -> None:
        # The stock method names a CA bundle, which would be loaded again for each connection.
        conn.cert_reqs = "CERT_REQUIRED"


def _check_status(response: requests.Response, *_: Any, **__: Any) -> None:
    """Refuse any status but 200; as a hook, before requests reads the body of a redirect."""
    if response.status_code != 200:
        response.close()
        raise FetchFailed(f"status {response.status_code}")


def _read(response: requests.Response, max_bytes: int) -> bytes:
    for coding in response.headers.get("Content-Encoding", "").lower().split(","):
        if coding.strip() not in _CODINGS:
            raise FetchFailed(f"content coding {coding.strip()[:_MOST_SHOWN]!a}")
    pieces, size = [], 0
    for piece in response.iter_content(_PIECE):
        size += len(piece)
        if size > max_bytes:
            raise FetchFailed(f"larger than {max_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)

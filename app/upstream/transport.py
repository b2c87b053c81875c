"""The only door to the backend, and the only importer of requests.

Errors of the libraries below become this project's here: those of the phase before the response
headers in `Transport.send`, those before the first body byte in `UpstreamResponse.first_chunk`,
those of a body under way by the names in `BODY_ERRORS`.

Nothing of the environment reaches a single call: proxies and the CA bundle are read once, and a
`.netrc` never, since it would replace the client's Authorization.

Source: specs/002 R10-R15, specs/003 R10, specs/006 W5.
"""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3 import PoolManager, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_ import create_urllib3_context

from app.errors import FetchFailed
from app.eventloop import Deadline
from app.routing.model_field import Pieces
from app.routing.outcomes import Outcome, UpstreamFailed
from app.upstream.connection import BodyBroke, RawResponse
from app.upstream.pool import POOLS_BY_SCHEME

# What iterating over a response's chunks may raise.
BODY_ERRORS = (requests.RequestException,)

_FETCH_CHUNK = 64 * 1024


def break_cause(error: Exception) -> str:
    """Return why a body broke off, from what iterating over it raised."""
    broke = next((arg for arg in error.args if isinstance(arg, BodyBroke)), None)
    return broke.cause if broke is not None else "reset"


class _Response(requests.Response):
    """Requests' response with nothing but a body.

    What the base and Session.send would add, a cookie jar above all, has no place here, and takes
    7 µs to make.
    """

    def __init__(self, raw: RawResponse) -> None:
        self.raw = raw
        self._content = False  # type: ignore[assignment]
        self._content_consumed = False


class UpstreamResponse:
    """A response whose headers are here and whose body is on its way.

    status, reason  of the status line
    fields          header fields as (name, value), in order, repeated ones kept
    resent          a stale pooled connection made a second sending necessary
    chunks          the body's bytes as they arrive; raises BODY_ERRORS when it breaks off
    """

    def __init__(self, raw: RawResponse, idle_timeout_s: float) -> None:
        self._raw = raw
        self._idle_timeout_s = idle_timeout_s
        self.status = raw.status
        self.reason = raw.reason or ""
        self.fields = raw.fields
        self.resent = raw.resent
        self._response = _Response(raw)
        raw.limit_silence(idle_timeout_s)
        self.chunks: Iterator[bytes] = self._response.iter_content(chunk_size=None)

    def first_chunk(self, timeout_s: float) -> bytes:
        """Wait for the first bytes of the body.

        timeout_s  total, seconds
        Returns    at least one byte
        Raises     UpstreamFailed: upstream_first_body_byte_timeout or _error
        """
        if self._raw.has_begun:
            # Without the timer, as nearly always with small answers: 5 µs.
            return next(self.chunks)
        self._raw.limit_silence(None)
        try:
            with Deadline(timeout_s, lambda: UpstreamFailed(
                    Outcome.FIRST_BODY_BYTE_TIMEOUT, "no body byte")):
                first = next(self.chunks)
        except StopIteration:
            raise UpstreamFailed(Outcome.FIRST_BODY_BYTE_ERROR, "empty body") from None
        except BODY_ERRORS as error:
            raise UpstreamFailed(Outcome.FIRST_BODY_BYTE_ERROR, break_cause(error)) from error
        self._raw.limit_silence(self._idle_timeout_s)
        return first

    def close(self) -> None:
        """Let go of the connection: back to the pool after a complete body, closed otherwise.

        Closing twice is harmless.
        """
        self._response.close()


class _TrustingOnce(HTTPAdapter):
    """Requests' adapter with one TLS context for all connections.

    Left to itself urllib3 makes one for each, and loading the CA bundle holds the event loop for
    45 ms.

    ca_bundle  path of a file or directory
    """

    def __init__(self, ca_bundle: str, **kwargs: Any) -> None:
        self._context = create_urllib3_context()
        # Where OpenSSL would tell an end without TLS's own word for it from a proper one, Python
        # asks it not to; see app.upstream.connection for why it matters.
        self._context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        place = "capath" if os.path.isdir(ca_bundle) else "cafile"
        self._context.load_verify_locations(**{place: ca_bundle})
        super().__init__(**kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, *_: Any, **__: Any) -> None:
        # The stock method would name the bundle again, to be loaded for each connection.
        conn.cert_reqs = "CERT_REQUIRED"


class _Adapter(_TrustingOnce):
    """An adapter with pools whose connections go by app.upstream.connection."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_own_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return _use_own_pools(super().proxy_manager_for(proxy, **kwargs))


def _use_own_pools(manager: PoolManager) -> PoolManager:
    manager.pool_classes_by_scheme = POOLS_BY_SCHEME
    return manager


class Transport:
    """Sends chat completions to the backend over pooled connections.

    base_url           scheme, host and optional path
    connect_timeout_s  look-up, connect and TLS together
    idle_timeout_s     longest silence within a body
    pool_size          idle connections kept; with as many as there are client connections,
                       none is ever thrown away
    """

    def __init__(self, base_url: str, *, connect_timeout_s: float, idle_timeout_s: float,
                 pool_size: int) -> None:
        self._idle_timeout_s = idle_timeout_s
        url = base_url + "/v1/chat/completions"
        proxies, ca_bundle = _environment_settings(url)
        adapter = _Adapter(ca_bundle, pool_maxsize=pool_size)
        request = requests.Request("POST", url).prepare()
        pool: Any = adapter.get_connection_with_tls_context(request, True, proxies=proxies)
        adapter.cert_verify(pool)
        pool.timeout = Timeout(connect=connect_timeout_s, read=None)
        self._pool = pool
        self._target = adapter.request_url(request, proxies)
        self._host = urlsplit(url).netloc

    def send(self, body: Pieces, headers: Mapping[str, str],
             header_timeout_s: float) -> UpstreamResponse:
        """Send one request and wait for the response headers.

        body              JSON in pieces, sent as they are
        headers           the fields that cross, without Host and Content-Length
        header_timeout_s  total for connect, sending and waiting, seconds
        Returns           UpstreamResponse of any status; the caller closes it
        Raises            UpstreamFailed: upstream_connect_error, upstream_header_timeout
        Cost              I/O; switches greenlets
        """
        try:
            with Deadline(header_timeout_s, lambda: UpstreamFailed(
                    Outcome.HEADER_TIMEOUT, "no headers")):
                raw = self._pool.exchange(self._target, body, {"Host": self._host, **headers})
        except HTTPError as error:
            raise UpstreamFailed(Outcome.CONNECT_ERROR, _detail(error)) from error
        return UpstreamResponse(raw, self._idle_timeout_s)

    def drop_stale(self) -> None:
        """Close the idle connections that the upstream has closed.

        The pool itself looks only at the one it hands out next; the others would stay half
        closed, a descriptor each, until as many requests came at once again.
        Cost: 1 µs for each idle connection; no switch.
        """
        for connection in list(self._pool.pool.queue):
            if connection is not None and not connection.is_connected:
                connection.close()


def _detail(error: HTTPError) -> str:
    """Return the names of the errors that led here, outermost first; no text of theirs."""
    cause = error.__cause__ or next(
        (arg for arg in error.args if isinstance(arg, Exception)), None)
    return type(error).__name__ + (f" {type(cause).__name__}" if cause else "")


def feed_fetcher(url: str, *, timeout_s: float, max_bytes: int) -> Callable[[], bytes]:
    """Return a function that gets a control-plane document.

    url        http or https
    timeout_s  total for one fetch, seconds
    max_bytes  a larger document is refused
    Returns    a function: no argument, the document's bytes; raises FetchFailed

    Status 200 only, no redirects, no cookies, nothing of any client.

    Source: specs/003 R10.
    """
    proxies, ca_bundle = _environment_settings(url)
    session = _FeedSession()
    session.trust_env = False
    session.mount("https://", _TrustingOnce(ca_bundle))

    def too_late() -> FetchFailed:
        return FetchFailed(f"no complete answer within {timeout_s:g} s")

    def fetch() -> bytes:
        try:
            with Deadline(timeout_s, too_late), session.get(
                    url, stream=True, allow_redirects=False, timeout=timeout_s,
                    proxies=proxies) as response:
                return _read_feed(response, max_bytes)
        except requests.RequestException as error:
            raise FetchFailed(type(error).__name__) from error
        finally:
            session.cookies.clear()

    return fetch


class _FeedSession(requests.Session):
    """A session that does not read the body of a redirect it will not follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _read_feed(response: requests.Response, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise FetchFailed(f"status {response.status_code}")
    pieces, size = [], 0
    for piece in response.iter_content(_FETCH_CHUNK):
        size += len(piece)
        if size > max_bytes:
            raise FetchFailed(f"larger than {max_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _environment_settings(url: str) -> tuple[dict[str, str], str]:
    """Return the proxies and the CA bundle's path that the environment prescribes for a URL."""
    settings: Mapping[str, Any] = requests.Session().merge_environment_settings(
        url, {}, None, None, None)
    bundle = settings["verify"]
    return settings["proxies"], bundle if isinstance(bundle, str) else DEFAULT_CA_BUNDLE_PATH

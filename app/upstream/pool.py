"""Pools of connections to one place, and an exchange on one of them.

urllib3 makes the connections, through proxies and TLS; what takes one out, uses it and puts it
back is here.

Source: specs/002 R13, R14; specs/006 W5, W9.
"""

import ssl
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ProtocolError

from app.routing.model_field import Pieces
from app.upstream.connection import HttpConnection, HttpsConnection, RawResponse


class ExchangeBroke(ProtocolError):
    """A connection broke before it had brought a response head."""


class ResendBroke(ExchangeBroke):
    """The second one did, after a stale one from the pool."""


class _Pool(HTTPConnectionPool):
    """What both kinds of pool do differently from urllib3's."""

    def exchange(self, target: str, body: Pieces, headers: Mapping[str, str]) -> RawResponse:
        """Send a request on a pooled connection and wait for the response head.

        target   as the request line has it
        body     in pieces
        headers  with Host
        Raises   HTTPError

        In place of urlopen, whose handling of URLs, redirects, retries and timeouts, none of them
        wanted here, was a tenth of a request's whole cost.
        """
        connection: Any = self._get_conn()
        try:
            if self.proxy is not None and self.scheme == "https":
                if connection.is_closed:
                    self._prepare_proxy(connection)
            elif self.proxy is not None:
                headers = {**headers, **(self.proxy_headers or {})}
            if connection.is_closed:
                connection.connect()
            try:
                connection.request("POST", target, body, headers)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                # Perhaps it has answered without hearing everything.
                pass
            response: RawResponse = connection.getresponse()
        except BaseException as error:
            connection.close()
            if isinstance(error, (OSError, HTTPException)):
                broke = ResendBroke if connection.resent else ExchangeBroke
                raise broke("connection aborted", error) from error
            raise
        response.belongs_to(self, connection)
        return response


class HttpPool(_Pool):
    """A pool of plain connections."""

    ConnectionCls = HttpConnection


class HttpsPool(_Pool, HTTPSConnectionPool):
    """A pool of TLS connections."""

    ConnectionCls = HttpsConnection


POOLS_BY_SCHEME = {"http": HttpPool, "https": HttpsPool}

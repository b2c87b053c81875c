"""Lets pages of other origins call the router from a browser.

Source: specs/002 R24; https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from collections.abc import Mapping
from typing import Any

from flask import Response

_PREFIX = "access-control-"
_METHODS = "GET, HEAD, POST"
# A browser asks again after this many seconds; Chromium takes at most 7,200.
_MAX_AGE_S = "7200"
_ANY = "*"


class Cors:
    """Decides which answers a page may read.

    origins  those allowed, as browsers send them; "*" among them: all. Empty: nobody is asked for,
             and what the upstream says of origins passes.
    """

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = origins

    def __bool__(self) -> bool:
        return bool(self._origins)

    def preflight(self, environ: Mapping[str, Any]) -> Response:
        """Answer an OPTIONS request; `mark` adds who may ask."""
        response = Response(status=204)
        # There is no content.
        del response.headers["Content-Type"]
        if self._allows(environ.get("HTTP_ORIGIN", "")):
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            # Authorization is covered by its name only, never by "*".
            asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
            response.headers["Access-Control-Allow-Headers"] = asked or "Authorization"
            response.headers["Access-Control-Max-Age"] = _MAX_AGE_S
        return response

    def mark(self, environ: Mapping[str, Any], response: Response) -> None:
        """Say in an answer who may read it, in place of what the upstream says of that."""
        if not self._origins:
            return
        if environ["REQUEST_METHOD"] != "OPTIONS":
            for name in {name for name, _ in response.headers if name.lower().startswith(_PREFIX)}:
                del response.headers[name]
        for name, value in self.fields(environ.get("HTTP_ORIGIN", "")):
            response.headers.add(name, value)

    def fields(self, origin: str) -> list[tuple[str, str]]:
        """Return the fields of an answer to a request of an origin; empty: it names none."""
        if not self._origins:
            return []
        fields = [("Vary", "Origin")]
        if self._allows(origin):
            allowed = _ANY if _ANY in self._origins else origin
            fields += [("Access-Control-Allow-Origin", allowed),
                       ("Access-Control-Expose-Headers", _ANY)]
        return fields

    def _allows(self, origin: str) -> bool:
        return bool(origin) and (_ANY in self._origins or origin in self._origins)

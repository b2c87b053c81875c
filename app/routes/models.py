"""GET /v1/models and /v1/models/{id}: what clients look at before they ask anything.

Source: specs/002 R54.
"""

import dataclasses
import hashlib
import threading

from flask import Response, request

from app.errors import ApiError
from app.eventloop import pause
from app.routes.application import Blueprint
from app.routing.catalogue import Catalogue
from app.routing.listing import listed, listing
from app.routing.view import View, Views

# Seconds. At start the feeds are here within a few.
_RETRY_AFTER = ("Retry-After", "2")


@dataclasses.dataclass
class Models:
    """Answers with the models of the current view; asks nobody."""

    views: Views
    _last: tuple[View, bytes, str] | None = None
    _listing: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def blueprint(self) -> Blueprint:
        """Return the blueprint of both routes."""
        blueprint = Blueprint("models", on_health_address=False)
        blueprint.get("/v1/models")(self.all)
        blueprint.get("/v1/models/<rest:id>")(self.one)
        return blueprint

    def all(self) -> Response:
        """Answer with the list; a view's list is made once."""
        view, catalogue = self._current()
        # One makes it, and all who want it meanwhile wait.
        with self._listing:
            if self._last is None or self._last[0] is not view:
                document = listing(view, catalogue, pause)
                self._last = view, document, _etag(document)
            _, document, etag = self._last
        return _answer(document, etag)

    def one(self, id: str) -> Response:
        """Answer with the entry of a model or an alias."""
        view, catalogue = self._current()
        entry = listed(view, catalogue, id)
        if entry is None:
            raise ApiError("model_not_found", "There is no model of this name.")
        return _answer(entry, _etag(entry))

    def _current(self) -> tuple[View, Catalogue]:
        view = self.views.current
        if view.catalogue is None:
            raise ApiError("missing_allowlist", "The models feed has not been fetched yet.",
                           headers=[_RETRY_AFTER])
        return view, view.catalogue


def _etag(document: bytes) -> str:
    return hashlib.blake2b(document, digest_size=16).hexdigest()


def _answer(document: bytes, etag: str) -> Response:
    # werkzeug's make_conditional would add a Date, and the server has one.
    unchanged = request.if_none_match.contains_weak(etag)
    response = Response(b"" if unchanged else document, 304 if unchanged else 200,
                        content_type="application/json")
    response.set_etag(etag)
    return response

"""GET /status: the router's picture, as a page or as JSON.

Source: specs/008 R8-R15.
"""

import dataclasses
import json
import time
from collections.abc import Callable

from flask import Response, request

from app.config import Config
from app.eventloop import pause
from app.page.document import CONTENT_SECURITY_POLICY, document
from app.page.picture import Moment, picture
from app.routes.application import Blueprint
from app.routing.conditions import Conditions
from app.routing.view import View, Views
from app.seen.memory import Memory

_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Vary", "Accept"),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"))


@dataclasses.dataclass(frozen=True)
class Status:
    """Shows the router to people.

    not_ready_reason  returns code and message of what keeps this worker from being ready, or None
    conditions        returns the models of a view as this host finds them
    started_at        seconds since the epoch
    clock             returns seconds, monotonic
    """

    config: Config
    views: Views
    memory: Memory
    not_ready_reason: Callable[[], tuple[str, str] | None]
    conditions: Callable[[View], Conditions]
    started_at: float
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    def blueprint(self) -> Blueprint:
        """Return the blueprint of the route."""
        blueprint = Blueprint("status", on_health_address=True)
        blueprint.get("/status")(self.status)
        return blueprint

    def status(self) -> Response:
        """Answer with the picture: HTML for whoever prefers it, else JSON."""
        seen, now = self.memory.read(pause), self.wall_clock()
        view = self.views.current
        shown = picture(Moment(self.config, view, seen, self.conditions(view), self.clock(), now,
                               self.started_at), pause)
        pause()
        accepted = request.accept_mimetypes
        if accepted["text/html"] > accepted["application/json"]:
            not_ready = self.not_ready_reason()
            return Response(document(shown, not_ready and not_ready[1], now),
                            content_type="text/html; charset=utf-8", headers=_HEADERS)
        return Response(json.dumps(shown), content_type="application/json", headers=_HEADERS)

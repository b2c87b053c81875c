"""GET /healthz and /readyz: is the process alive, and can it route.

Source: specs/001 R9, R10.
"""

import dataclasses
import time
from collections.abc import Callable

from flask import Response

from app.config import Config
from app.errors import error_body
from app.inflight import InFlight
from app.routes.application import Blueprint
from app.routing.view import Views

NOT_READY = "not_ready"


@dataclasses.dataclass(frozen=True)
class Health:
    """The health routes of one worker."""

    config: Config
    views: Views
    in_flight: InFlight
    clock: Callable[[], float] = time.monotonic

    def blueprint(self) -> Blueprint:
        """Return the blueprint of both routes."""
        blueprint = Blueprint("health", on_health_address=True)
        blueprint.get("/healthz")(self.healthz)
        blueprint.get("/readyz")(self.readyz)
        return blueprint

    def healthz(self) -> Response:
        """Answer 200 as long as the event loop turns."""
        return Response("ok", mimetype="text/plain")

    def readyz(self) -> Response:
        """Answer 200 while requests can be routed, else 503 with the reason."""
        reason = self.not_ready_reason()
        if reason is None:
            return Response("ready", mimetype="text/plain")
        code, message = reason
        return Response(error_body(message, NOT_READY, None, code), 503,
                        mimetype="application/json")

    def not_ready_reason(self) -> tuple[str, str] | None:
        """Return code and message of what keeps this worker from being ready, or None."""
        if self.in_flight.draining:
            return "draining", "This worker is about to end."
        view = self.views.current
        if view.catalogue is None:
            return "missing_allowlist", "The models feed has not been fetched yet."
        if self._is_older(view.catalogue.taken_at, self.config.readyz_max_allowlist_age_ms):
            return "stale_allowlist", "The models feed is too old."
        if view.snapshot is None:
            return NOT_READY, "The utilization feed has not been fetched yet."
        if not view.snapshot.ranking.candidates:
            return NOT_READY, "No model is eligible."
        if self._is_older(view.snapshot.taken_at, self.config.readyz_max_snapshot_age_ms):
            return "stale_snapshot", "The utilization feed is too old."
        return None

    def _is_older(self, taken_at: float, age_ms: int) -> bool:
        return (self.clock() - taken_at) * 1000 > age_ms

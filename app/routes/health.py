"""GET /healthz and /readyz: is the process alive, and can it route.

Source: specs/001 R9, R10.
"""

import dataclasses

from flask import Blueprint, Response

from app.config import Config
from app.errors import error_body
from app.inflight import InFlight
from app.routing.snapshot import SnapshotStore

NOT_READY = "not_ready"


@dataclasses.dataclass(frozen=True)
class Health:
    """The health routes over one worker's picture of the backend."""

    config: Config
    store: SnapshotStore
    in_flight: InFlight

    def blueprint(self) -> Blueprint:
        """Return the blueprint of both routes."""
        blueprint = Blueprint("health", __name__)
        blueprint.get("/healthz")(self.healthz)
        blueprint.get("/readyz")(self.readyz)
        return blueprint

    def healthz(self) -> Response:
        """Answer 200 as long as the event loop turns."""
        return Response("ok", mimetype="text/plain")

    def readyz(self) -> Response:
        """Answer 200 while requests can be routed, else 503 with the reason."""
        problem = self.problem()
        if problem is None:
            return Response("ready", mimetype="text/plain")
        code, message = problem
        return Response(error_body(message, NOT_READY, None, code), 503,
                        mimetype="application/json")

    def problem(self) -> tuple[str, str] | None:
        """Return code and message of what keeps this worker from being ready, or None."""
        if self.in_flight.draining:
            return "draining", "This worker is about to end."
        allowlist_age, snapshot_age = self.store.allowlist_age_s(), self.store.snapshot_age_s()
        if allowlist_age is None:
            return "missing_allowlist", "The models feed has not been fetched yet."
        if allowlist_age * 1000 > self.config.readyz_max_allowlist_age_ms:
            return "stale_allowlist", "The models feed is too old."
        if self.store.snapshot is None or snapshot_age is None:
            return NOT_READY, "The utilization feed has not been fetched yet."
        if not self.store.snapshot.candidates:
            return NOT_READY, "No model is eligible."
        if snapshot_age * 1000 > self.config.readyz_max_snapshot_age_ms:
            return "stale_snapshot", "The utilization feed is too old."
        return None

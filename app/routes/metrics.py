"""GET /metrics: what Prometheus scrapes.

Source: specs/001 R13, specs/003 R43.
"""

import dataclasses

from flask import Response

from app.cooling.session import Cooling
from app.exposition import CONTENT_TYPE, exposition
from app.routes.application import Blueprint
from app.routing.view import Views


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Answers scrapes.

    views    what models there are
    cooling  which of them the host has set aside
    """

    views: Views
    cooling: Cooling

    def blueprint(self) -> Blueprint:
        """Return the blueprint of the route."""
        blueprint = Blueprint("metrics", on_health_address=True)
        blueprint.get("/metrics")(self._metrics)
        return blueprint

    def _metrics(self) -> Response:
        return Response(exposition(self.cooling.shown(self.views.current)),
                        content_type=CONTENT_TYPE)

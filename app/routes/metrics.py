"""GET /metrics: what Prometheus scrapes.

Source: specs/001 R13.
"""

from flask import Response

from app.exposition import CONTENT_TYPE, exposition
from app.routes.application import Blueprint


def metrics_blueprint() -> Blueprint:
    """Return the blueprint of the route."""
    blueprint = Blueprint("metrics", on_health_address=True)
    blueprint.get("/metrics")(_metrics)
    return blueprint


def _metrics() -> Response:
    return Response(exposition(), content_type=CONTENT_TYPE)

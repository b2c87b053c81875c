"""POST /v1/chat/completions: the life of a request, in order.

Source: specs/002.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from flask import Response, request

from app.client_socket import Client, client_of
from app.config import Config
from app.errors import ApiError, ClientGone, ShuttingDown
from app.inflight import InFlight, overloaded
from app.journal import Ending, RequestRecord
from app.routes.application import Blueprint
from app.routes.body import read_body, skip_body
from app.routing.decision import Mode, decide, mode_of
from app.routing.event_stream import StreamTail, is_event_stream
from app.routing.headers import SELECTED_MODEL, client_headers, upstream_headers
from app.routing.model_field import find_model
from app.routing.view import View, Views
from app.sticky.session import ClientStickiness, Stickiness
from app.upstream.failover import Attempts, Committed, Prepared
from app.upstream.relay import Relay

CHAT_COMPLETIONS = "/v1/chat/completions"


class RelayedResponse(Response):
    """A response made of the upstream's own header fields and nothing else."""

    default_mimetype = None

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Give the server the header fields as they came; werkzeug would rewrite some."""
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


@dataclasses.dataclass(frozen=True)
class ChatCompletions:
    """Answers chat completions requests.

    views       what requests are routed by
    stickiness  of clients
    attempts    carries a request out
    in_flight   the worker's requests
    clock       returns seconds, monotonic
    """

    config: Config
    views: Views
    stickiness: Stickiness
    attempts: Attempts
    in_flight: InFlight
    clock: Callable[[], float] = time.monotonic

    def blueprint(self) -> Blueprint:
        """Return the blueprint of the route."""
        blueprint = Blueprint("chat", on_health_address=False)
        blueprint.add_url_rule(CHAT_COMPLETIONS, view_func=self.answer, methods=["POST"],
                               defaults={"path": CHAT_COMPLETIONS})
        return blueprint

    def answer(self, path: str) -> Response:
        """Answer a request.

        path    of the route, and below the upstream's base URL
        Raises  ApiError, ClientGone
        """
        environ = request.environ
        record = RequestRecord(environ["router.request_id"], self.clock)
        try:
            try:
                record.on_finish = self.in_flight.enter(record.cut_at_shutdown)
            except ApiError:
                skip_body(environ)
                raise
            return self._answer(path, environ, record)
        except (ApiError, ShuttingDown) as error:
            # Not kept in a variable: its traceback would keep this frame, and itself with it.
            raise _refused(record, error) from None
        except BaseException as error:
            if not isinstance(error, ClientGone):
                record.status, record.ending = 500, Ending.INTERNAL_ERROR
            record.finish()
            raise

    def _answer(self, path: str, environ: dict[str, Any], record: RequestRecord) -> Response:
        client, config, view = client_of(environ), self.config, self.views.current
        field = find_model(read_body(
            environ, config.max_request_bytes, config.client_body_timeout_ms / 1000))
        record.label, record.asked = view.label, view.label(field.model)
        client.watch()
        sticky = self._sticky(environ, view, field.model)
        decision = decide(view, field.model, sticky.choice.model if sticky else None,
                          config.max_model_list_items)
        record.mode, record.sticky = decision.mode, decision.sticky
        header_timeout_ms = (config.upstream_header_timeout_ms if field.stream
                             else config.upstream_nonstream_header_timeout_ms)
        prepared = Prepared(path, field.body_for, upstream_headers(environ, record.request_id),
                            header_timeout_ms / 1000)
        committed = self.attempts.run(
            decision.candidates, prepared, (record, sticky) if sticky else (record,))
        try:
            return self._respond(environ, client, record, decision.mode, committed)
        except BaseException:
            committed.response.close()
            raise

    def _sticky(self, environ: dict[str, Any], view: View, asked: str) -> ClientStickiness | None:
        if mode_of(view, asked) is Mode.DIRECT:
            return None
        return self.stickiness.for_client(environ)

    def _respond(self, environ: dict[str, Any], client: Client, record: RequestRecord, mode: Mode,
                 committed: Committed) -> Response:
        upstream, cuts = committed.response, self.config.cut_unfinished_streams
        record.selected = record.label(committed.model)
        record.status, record.resent = upstream.status, upstream.resent
        record.begin_answer()
        if upstream.status in (204, 304):
            # There is no body to relay, and no end of it to see.
            record.ending = Ending.COMPLETE
        fields = client_headers(upstream.fields)
        if mode is not Mode.DIRECT:
            fields.append((SELECTED_MODEL, committed.model))
        tail = StreamTail() if is_event_stream(upstream.status, upstream.fields) else None
        if tail is not None and cuts:
            # A client that knows the length would take all bytes for a complete answer.
            fields = [field for field in fields if field[0].lower() != "content-length"]
        delimited = environ["SERVER_PROTOCOL"] != "HTTP/1.0" or any(
            name.lower() == "content-length" for name, _ in fields)
        relay = Relay(committed, record, client, delimited=delimited, tail=tail, cuts=cuts)
        return RelayedResponse(relay, f"{upstream.status} {upstream.reason}".rstrip(), fields,
                               direct_passthrough=True)


def _refused(record: RequestRecord, why: ApiError | ShuttingDown) -> ApiError:
    """Finish the record of a request that gets no answer of an upstream; return what it gets."""
    error = why if isinstance(why, ApiError) else overloaded("The router is about to end.")
    record.status, record.code, record.ending = error.status, error.code, Ending.REFUSED
    record.finish()
    return error

"""POST /v1/chat/completions: the life of a request, in order.

Source: specs/002.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, request

from app.client_socket import client_of
from app.config import Config
from app.errors import ApiError, ClientGone, ShuttingDown
from app.inflight import InFlight, overloaded
from app.journal import Ending, RequestRecord
from app.routes.body import read_body, skip_body
from app.routing.headers import SELECTED_MODEL, client_headers, upstream_headers
from app.routing.model_field import ModelField, find_model
from app.routing.selection import Mode, Route, log_name, select, sticky_result
from app.routing.snapshot import SnapshotStore
from app.sticky.session import Stickiness
from app.upstream.failover import AttemptObserver, Attempts, Committed, Prepared
from app.upstream.relay import Relay


PROXY = "proxy"


class RelayedResponse(Response):
    """A response made of the upstream's own header fields and nothing else."""

    default_mimetype = None

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Give the server the header fields as they came; werkzeug would rewrite some."""
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


@dataclasses.dataclass(frozen=True)
class Proxy:
    """What a request needs on its way; handed in whole by the factory."""

    config: Config
    store: SnapshotStore
    stickiness: Stickiness
    attempts: Attempts
    in_flight: InFlight
    clock: Callable[[], float] = time.monotonic

    def blueprint(self) -> Blueprint:
        """Return the blueprint of the one proxied route."""
        blueprint = Blueprint(PROXY, __name__)
        blueprint.post("/v1/chat/completions")(self.chat_completions)
        return blueprint

    def chat_completions(self) -> Response:
        """Answer a chat completions request.

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
            return self._answer(environ, record)
        except (ApiError, ShuttingDown) as error:
            # Not kept in a variable: its traceback would keep this frame, and itself with it.
            raise _refused(record, error) from None
        except BaseException as error:
            if not isinstance(error, ClientGone):
                record.status, record.ending = 500, Ending.INTERNAL_ERROR
            record.finish()
            raise

    def _answer(self, environ: dict[str, Any], record: RequestRecord) -> Response:
        config = self.config
        body = read_body(environ, config.max_request_bytes, config.client_body_timeout_ms / 1000)
        field = find_model(body)
        record.label = functools.partial(log_name, allowlist=self.store.allowlist)
        record.asked = record.label(field.model)
        route = select(field.model, self.store.allowlist, self.store.snapshot,
                       config.max_model_list_items)
        record.mode = route.mode
        client_of(environ).watch()
        committed = None
        try:
            committed = self._attempt(environ, record, field, route)
            return self._respond(environ, record, route, committed)
        except BaseException:
            if committed is not None:
                committed.response.close()
            raise

    def _attempt(self, environ: Mapping[str, str], record: RequestRecord,
                 field: ModelField, route: Route) -> Committed:
        observers: list[AttemptObserver] = [record]
        if route.mode is not Mode.DIRECT:
            sticky = self.stickiness.for_client(environ)
            observers.append(sticky)
            record.sticky = sticky_result(route, sticky.choice.model)
            route = route.preferring(sticky.choice.model)
        config = self.config
        header_timeout_ms = (config.upstream_header_timeout_ms if field.stream
                             else config.upstream_nonstream_header_timeout_ms)
        return self.attempts.run(route.candidates, Prepared(
            "/v1/chat/completions", field.body_for,
            upstream_headers(environ, record.request_id), header_timeout_ms / 1000), observers)

    def _respond(self, environ: dict[str, Any], record: RequestRecord, route: Route,
                 committed: Committed) -> Response:
        upstream = committed.response
        record.selected = record.label(committed.model)
        record.status, record.resent = upstream.status, upstream.resent
        record.begin_answer()
        if upstream.status in (204, 304):
            # Without a body there is nothing to relay, and no end of it to see.
            record.ending = Ending.COMPLETE
        fields = client_headers(upstream.fields)
        if route.mode is not Mode.DIRECT:
            fields.append((SELECTED_MODEL, committed.model))
        relay = Relay(committed, record, client_of(environ),
                      delimited=environ["SERVER_PROTOCOL"] != "HTTP/1.0"
                      or any(name.lower() == "content-length" for name, _ in fields))
        return RelayedResponse(relay, f"{upstream.status} {upstream.reason}".rstrip(), fields,
                               direct_passthrough=True)


def _refused(record: RequestRecord, why: ApiError | ShuttingDown) -> ApiError:
    """Finish the record of a request that gets no answer of an upstream; return what it gets."""
    error = why if isinstance(why, ApiError) else overloaded("The router is about to end.")
    record.status, record.code, record.ending = error.status, error.code, Ending.REFUSED
    record.finish()
    return error

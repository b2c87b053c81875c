"""POST /v1/chat/completions: the life of a request, in order.

Source: specs/002.
"""

import dataclasses
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
from app.routing.client_key import ClientKeys
from app.routing.headers import SELECTED_MODEL, client_headers, upstream_headers
from app.routing.model_field import ModelField, Pieces, find_model
from app.routing.selection import Mode, Route, log_name, select, sticky_result
from app.routing.snapshot import SnapshotStore
from app.sticky.store import StickyChoice, StickyStore
from app.upstream.failover import Attempt, Attempts, Committed
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
    sticky: StickyStore
    client_keys: ClientKeys
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
        record.asked = log_name(field.model, self.store.allowlist)
        route = select(field.model, self.store.allowlist, self.store.snapshot,
                       config.max_model_list_items)
        record.mode = route.mode
        client_of(environ).watch()
        committed = None
        try:
            committed = self._attempt(environ, record, body, field, route)
            return self._respond(environ, record, route, committed)
        except BaseException:
            if committed is not None:
                committed.response.close()
            raise

    def _attempt(self, environ: Mapping[str, str], record: RequestRecord, body: bytes,
                 field: ModelField, route: Route) -> Committed:
        client_key, choice = "", StickyChoice()
        if route.mode is not Mode.DIRECT:
            client_key = self.client_keys.derive(environ)
            choice = self.sticky.get(client_key)
            record.sticky = sticky_result(route, choice.model)
            route = route.preferring(choice.model)

        def on_attempt(attempt: Attempt) -> None:
            record.attempts.append({
                "model": log_name(attempt.model, self.store.allowlist),
                "outcome": attempt.outcome, "detail": attempt.detail,
                "ms": round(attempt.duration_ms, 1)})
            if attempt.failure is not None:
                record.failures.append(attempt.failure)
                if attempt.model == choice.model:
                    record.moved = True
                    self.sticky.discard(client_key, choice)

        def body_for(model: str) -> Pieces:
            return (body,) if route.mode is Mode.DIRECT else field.replaced(body, model)

        config = self.config
        header_timeout_ms = (config.upstream_header_timeout_ms if field.stream
                             else config.upstream_nonstream_header_timeout_ms)
        committed = self.attempts.run(
            route.candidates, body_for, upstream_headers(environ, record.request_id),
            header_timeout_ms / 1000, on_attempt)
        try:
            if client_key and 200 <= committed.response.status < 300:
                self.sticky.put(client_key, committed.model, choice)
        except BaseException:
            # The client left while the store was being written.
            committed.response.close()
            raise
        return committed

    def _respond(self, environ: dict[str, Any], record: RequestRecord, route: Route,
                 committed: Committed) -> Response:
        upstream = committed.response
        record.selected = log_name(committed.model, self.store.allowlist)
        record.status, record.resent = upstream.status, upstream.resent
        record.committed()
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

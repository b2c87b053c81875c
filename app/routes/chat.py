"""POST /v1/chat/completions and /v1/completions: the life of a request, in order.

Source: specs/002.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from flask import Response, request

from app.client import Client, client_of
from app.config import BALANCED, OPENAI_ERRORS, PASS_UNKNOWN, Config
from app.cooling.session import Cooling, RequestCooling
from app.errors import ApiError, BodyTooSlow, ClientGone, ShuttingDown, overloaded, retry_after
from app.eventloop import pause
from app.inflight import Admission, InFlight
from app.journal import Ending, RequestRecord
from app.open_requests import OpenRequest, OpenRequests
from app.routes.application import Blueprint
from app.routes.body import judge_announced, read_body, skip_body
from app.routing.account import Account
from app.routing.conditions import Conditions
from app.routing.decision import (Asked, Caller, Decision, Mode, Rules, decide, read_asked,
                                  refuse_unknown)
from app.routing.error_body import MAX_BYTES
from app.routing.error_member import fields_of_changed, may_lack_member, with_error_member
from app.routing.event_stream import StreamTail, is_event_stream, readable_type
from app.routing.headers import (INVOCATION_ID, NO_RETRY, Field, client_headers, sane_id, trace_id,
                                 upstream_headers, value_of)
from app.routing.model_field import ModelField, find_model
from app.routing.needs import NO_NEEDS, Needs
from app.routing.needs_reader import read_needs
from app.routing.view import View, Views
from app.seen.memory import Memory
from app.sticky.session import ClientStickiness, Stickiness
from app.upstream.failover import Attempts, Committed, Prepared, uncounted
from app.upstream.relay import Relay
from app.upstream.transport import UpstreamResponse

# The routes, and what they are below the upstream's base URL.
PATHS = ("/v1/chat/completions", "/v1/completions")
# Between two passes over a larger body others have a turn.
_LARGE_BYTES = 1024 * 1024


class RelayedResponse(Response):
    """A response made of the upstream's own header fields and nothing else."""

    default_mimetype = None

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Give the server the header fields as they came; werkzeug would rewrite some."""
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


@dataclasses.dataclass(frozen=True)
class Completions:
    """Answers requests for completions, of a chat or of a prompt.

    views          what requests are routed by
    stickiness     of clients
    cooling        of models
    attempts       carries a request out
    in_flight      the worker's requests
    open_requests  of the host, by model
    memory         takes note of what this host sees
    clock          returns seconds, monotonic
    """

    config: Config
    views: Views
    stickiness: Stickiness
    cooling: Cooling
    attempts: Attempts
    in_flight: InFlight
    open_requests: OpenRequests
    memory: Memory
    clock: Callable[[], float] = time.monotonic

    @functools.cached_property
    def rules(self) -> Rules:
        """How this router is set to decide."""
        return Rules(self.config.unknown_models == PASS_UNKNOWN,
                     balanced=self.config.alias_choice == BALANCED,
                     list_return_s=self.config.sticky_return_secs)

    def blueprint(self) -> Blueprint:
        """Return the blueprint of both routes."""
        blueprint = Blueprint("chat", on_health_address=False)
        for path in PATHS:
            blueprint.add_url_rule(path, path.replace("/", "_"), self.answer, methods=["POST"],
                                   defaults={"path": path})
        return blueprint

    def answer(self, path: str) -> Response:
        """Answer a request.

        path    of the route, and below the upstream's base URL
        Raises  ApiError, ClientGone
        """
        environ = request.environ
        record = RequestRecord(environ["router.request_id"], self.clock, self.memory)
        record.trace_id = trace_id(environ.get("HTTP_TRACEPARENT", ""))
        try:
            return self._answer(path, environ, record, self._admit(environ, record))
        except (ApiError, BodyTooSlow, ShuttingDown) as error:
            if isinstance(error, BodyTooSlow) and error.place_needed:
                client_of(environ).yield_place()
            # Not kept in a variable: its traceback would keep this frame, and itself with it.
            raise _refused(record, error) from None
        except BaseException as error:
            if not isinstance(error, ClientGone):
                record.status, record.ending = 500, Ending.INTERNAL_ERROR
            record.finish()
            raise

    def _admit(self, environ: dict[str, Any], record: RequestRecord) -> Admission:
        announced = judge_announced(environ, self.config.max_request_bytes)
        try:
            admission = self.in_flight.arrive(record.cut_at_shutdown, announced)
        except ApiError:
            skip_body(environ)
            raise
        record.on_finish.append(admission.leave)
        return admission

    def _answer(self, path: str, environ: dict[str, Any], record: RequestRecord,
                admission: Admission) -> Response:
        client, config = client_of(environ), self.config
        body = read_body(environ, config.max_request_bytes, config.client_body_timeout_ms / 1000,
                         admission)
        admission.begin()
        # Read once, behind the body: that may have taken its time.
        between = pause if len(body) > _LARGE_BYTES else _go_on
        view, field = self.views.current, find_model(body, between)
        record.label, record.asked = view.label, view.label(field.model)
        asked = read_asked(view, field.model, config.max_model_list_items)
        record.mode = asked.mode
        refuse_unknown(view, asked, self.rules.pass_unknown)
        sticky = self._sticky(environ, asked, field)
        caller = sticky.caller(self.clock()) if sticky else Caller()
        needs = self._needs(asked, field, between)
        # Last: others have run meanwhile.
        conditions = self._conditions(view)
        decision = decide(view, asked, needs, caller, self.rules, conditions)
        record.sticky = decision.sticky
        if sticky is not None:
            sticky.kept = decision.keep
        prepared = self._prepared(path, environ, record, field, asked)
        cooling = self.cooling.for_request(conditions, view.label, prepared.header_timeout_s)
        client.watch()
        committed = self._run(decision, prepared, record, cooling, sticky)
        admission.release_body()
        try:
            return self._respond(environ, client, record, committed)
        except BaseException:
            committed.response.close()
            raise

    def _sticky(self, environ: dict[str, Any], asked: Asked,
                field: ModelField) -> ClientStickiness | None:
        if asked.mode is Mode.DIRECT:
            return None
        return self.stickiness.for_client(environ, field.prompt_cache_key,
                                          in_list=asked.mode is Mode.LIST)

    def _conditions(self, view: View) -> Conditions:
        """Return the models as this host finds them now; for the ranking it is what cools."""
        conditions = self.cooling.conditions()
        if not self.rules.balanced or view.snapshot is None:
            return conditions
        return Conditions(conditions.cooling, open_requests=self.open_requests.counts(),
                          feed_age_s=self.clock() - view.snapshot.as_of)

    def _needs(self, asked: Asked, field: ModelField, between: Callable[[], None]) -> Needs:
        if not asked.needs_count or not self.config.alias_fit:
            return NO_NEEDS
        between()
        return read_needs(field.members, between)

    def _prepared(self, path: str, environ: dict[str, Any], record: RequestRecord,
                  field: ModelField, asked: Asked) -> Prepared:
        query, size = environ.get("QUERY_STRING"), len(field.body)
        return Prepared(f"{path}?{query}" if query else path, field.body_for,
                        upstream_headers(environ, record.request_id),
                        self.config.header_timeout_s(field.stream, size), record.started, size,
                        chosen_here=asked.mode is not Mode.DIRECT, begun=self._counting(record))

    def _counting(self, record: RequestRecord) -> Callable[[str], None]:
        """Return what counts a request as open on the model of each attempt, until its end."""
        if not self.rules.balanced:
            return uncounted
        opened = OpenRequest(self.open_requests)
        record.on_finish.append(opened.end)
        return lambda model: opened.begin(record.label(model))

    def _run(self, decision: Decision, prepared: Prepared, record: RequestRecord,
             cooling: RequestCooling, sticky: ClientStickiness | None) -> Committed:
        # The store of sticky choices may wait, and its request be interrupted then: it comes last.
        observers = (record, cooling, sticky) if sticky else (record, cooling)
        account = record.account = Account(
            decision, self.stickiness.is_on, record.started, self.clock)
        try:
            return self.attempts.run(decision.candidates, prepared, observers, cooling.may_try,
                                     account.passed_over)
        finally:
            cooling.give_back()

    def _respond(self, environ: dict[str, Any], client: Client, record: RequestRecord,
                 committed: Committed) -> Response:
        upstream, cuts = committed.response, self.config.cut_unfinished_streams
        first, fields = committed.first, client_headers(upstream.fields)
        if self.config.upstream_errors == OPENAI_ERRORS:
            first, fields = _show_error(upstream, first, fields)
        record.selected = record.label(committed.model)
        record.status, record.resent = upstream.status, upstream.resent
        record.invocation_id = sane_id(value_of(INVOCATION_ID, fields))
        fields = _told_to_retry(committed, record.failed_over, fields)
        record.begin_answer()
        if upstream.status in (204, 304):
            # There is no body to relay, and no end of it to see.
            record.ending = Ending.COMPLETE
        fields += record.account.fields() if record.account else []
        kind = readable_type(upstream.status, upstream.fields)
        is_stream = is_event_stream(kind)
        if is_stream and cuts:
            # A client that knows the length would take all bytes for a complete answer.
            fields = [field for field in fields if field[0].lower() != "content-length"]
        delimited = environ["SERVER_PROTOCOL"] != "HTTP/1.0" or any(
            name.lower() == "content-length" for name, _ in fields)
        relay = Relay(upstream, first, record, client, delimited=delimited, is_stream=is_stream,
                      tail=StreamTail() if kind else None, cuts=cuts)
        return RelayedResponse(relay, f"{upstream.status} {upstream.reason}".rstrip(), fields,
                               direct_passthrough=True)


def _show_error(upstream: UpstreamResponse, first: bytes,
                fields: list[Field]) -> tuple[bytes, list[Field]]:
    """Give an error of the upstream the member that SDKs show; return its first bytes and fields.

    Cost  reads the body of an error of at most 64 KiB; switches greenlets

    Source: specs/002 R25.
    """
    if not may_lack_member(upstream.status, fields):
        return first, fields
    first = upstream.peek(MAX_BYTES)
    changed = with_error_member(upstream.status, first) if upstream.whole else None
    if changed is None:
        return first, fields
    return changed, fields_of_changed(fields, changed)


def _go_on() -> None:
    pass


def _told_to_retry(committed: Committed, failed_over: bool, fields: list[Field]) -> list[Field]:
    """Return the response fields of an upstream's answer with what the client should do next.

    Source: specs/002 R66.
    """
    if committed.response.status == 503 and failed_over:
        return [*(field for field in fields if field[0].lower() != NO_RETRY[0]), NO_RETRY]
    if committed.at_capacity and not value_of("retry-after", fields):
        return [*fields, retry_after()]
    return fields


def _refused(record: RequestRecord, why: ApiError | BodyTooSlow | ShuttingDown) -> ApiError:
    """Finish the record of a request that gets no answer of an upstream; return what it gets."""
    if isinstance(why, ApiError):
        error = why
    elif isinstance(why, BodyTooSlow):
        error = overloaded("The body came too slowly for a router with so much to do.")
    else:
        error = overloaded("The router is about to end.")
    if record.failed_over:
        error.headers += (NO_RETRY,)
    if record.account is not None:
        error.headers += tuple(record.account.fields())
    record.status, record.code, record.ending = error.status, error.code, Ending.REFUSED
    record.finish()
    return error

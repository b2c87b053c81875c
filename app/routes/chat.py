"""POST /v1/chat/completions and /v1/completions: the life of a request, in order.

Source: specs/002.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from flask import Response, request
from werkzeug.datastructures import Headers

from app.client import Client, client_of
from app.config import OPENAI_ERRORS, Config
from app.cooling.session import Cooling, RequestCooling
from app.errors import ApiError, BodyTooSlow, ClientGone, ShuttingDown, retry_after
from app.inflight import Admission
from app.journal import Ending, RequestRecord
from app.open_requests import OpenRequest, OpenRequests
from app.routes.application import Blueprint
from app.routes.deciding import Deciding, refusal
from app.routing.account import Account
from app.routing.decision import Asked, Decision, Mode
from app.routing.error_body import MAX_BYTES
from app.routing.error_member import fields_of_changed, may_lack_member, with_error_member
from app.routing.event_stream import StreamTail, is_event_stream, readable_type
from app.routing.headers import (INVOCATION_ID, NO_RETRY, Field, client_headers, sane_id, trace_id,
                                 upstream_headers, value_of)
from app.routing.model_field import ModelField
from app.seen.memory import Memory
from app.sticky.session import ClientStickiness
from app.upstream.failover import Attempts, Committed, Prepared, uncounted
from app.upstream.relay import Relay
from app.upstream.transport import UpstreamResponse

# The routes, and what they are below the upstream's base URL.
PATHS = ("/v1/chat/completions", "/v1/completions")


class RelayedResponse(Response):
    """A response of the upstream's header fields and those that the router adds, as they are.

    fields  becomes the response's own list, to which others are added later

    werkzeug would judge and copy each field, and rewrite some. app.answer_writer judges them.
    """

    default_mimetype = None

    def __init__(self, relay: Relay, status: str, fields: list[Field]) -> None:
        headers = Headers()
        headers._list = fields
        self._relay = relay
        super().__init__(relay, status, headers, direct_passthrough=True)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Give the server head and body. Raises what the server raises at the head."""
        try:
            start_response(self.status, self.headers.to_wsgi_list())
        except Exception:
            self._relay.fail()
            raise
        return self._relay


@dataclasses.dataclass(frozen=True)
class Completions:
    """Answers requests for completions, of a chat or of a prompt.

    deciding       takes a request to its decision
    cooling        of models
    attempts       carries a request out
    open_requests  of the host, by model
    memory         takes note of what this host sees
    clock          returns seconds, monotonic
    """

    config: Config
    deciding: Deciding
    cooling: Cooling
    attempts: Attempts
    open_requests: OpenRequests
    memory: Memory
    clock: Callable[[], float] = time.monotonic

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
            # Not kept in a variable: its traceback would keep this frame, and itself with it.
            raise _refused(environ, record, error) from None
        except BaseException as error:
            if not isinstance(error, ClientGone):
                record.status, record.ending = 500, Ending.INTERNAL_ERROR
            record.finish()
            raise

    def _admit(self, environ: dict[str, Any], record: RequestRecord) -> Admission:
        admission = self.deciding.admit(environ, record.cut_at_shutdown)
        record.on_finish.append(admission.leave)
        return admission

    def _answer(self, path: str, environ: dict[str, Any], record: RequestRecord,
                admission: Admission) -> Response:
        client, deciding = client_of(environ), self.deciding
        body = deciding.body(environ, admission)
        admission.begin()
        view, field = deciding.read(body)
        record.label, record.asked = view.label, view.label(field.model)
        asked = deciding.asked(view, field)
        record.mode = asked.mode
        question = deciding.question(environ, view, field, asked)
        sticky, decision = question.sticky, deciding.decide(question)
        if sticky is not None:
            sticky.kept = decision.keep
        prepared = self._prepared(path, environ, record, field, asked)
        cooling = self.cooling.for_request(question.conditions, view, prepared.header_timeout_s)
        client.watch()
        committed = self._run(decision, prepared, record, cooling, sticky)
        admission.release_body()
        try:
            return self._respond(environ, client, record, committed)
        except BaseException:
            committed.response.close()
            raise

    def _prepared(self, path: str, environ: dict[str, Any], record: RequestRecord,
                  field: ModelField, asked: Asked) -> Prepared:
        query, size = environ.get("QUERY_STRING"), len(field.body)
        return Prepared(f"{path}?{query}" if query else path, field.body_for,
                        upstream_headers(environ, record.request_id),
                        self.config.header_timeout_s(field.stream, size), record.started, size,
                        chosen_here=asked.mode is not Mode.DIRECT, begun=self._counting(record))

    def _counting(self, record: RequestRecord) -> Callable[[str], None]:
        """Return what counts a request as open on the model of each attempt, until its end."""
        if not self.deciding.rules.balanced:
            return uncounted
        opened = OpenRequest(self.open_requests)
        record.on_finish.append(opened.end)
        return lambda model: opened.begin(record.label(model))

    def _run(self, decision: Decision, prepared: Prepared, record: RequestRecord,
             cooling: RequestCooling, sticky: ClientStickiness | None) -> Committed:
        # The store of sticky choices may wait, and its request be interrupted then: it comes last.
        observers = (record, cooling, sticky) if sticky else (record, cooling)
        account = record.account = Account(decision, self.deciding.stickiness.is_on,
                                           self.config.max_attempts, record.started, self.clock)
        passed_over = ((account.passed_over, sticky.passed_over) if sticky
                       else (account.passed_over,))
        try:
            return self.attempts.run(decision.candidates, prepared, observers, cooling.may_try,
                                     passed_over)
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
        fields = _told_to_retry(committed, record.failover_tried, fields)
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
        return RelayedResponse(relay, f"{upstream.status} {upstream.reason}".rstrip(), fields)


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


def _told_to_retry(committed: Committed, failover_tried: bool,
                   fields: list[Field]) -> list[Field]:
    """Return the response fields of an upstream's answer with what the client should do next.

    Source: specs/002 R66.
    """
    if committed.response.status == 503 and failover_tried:
        return [*(field for field in fields if field[0].lower() != NO_RETRY[0]), NO_RETRY]
    if committed.at_capacity and not value_of("retry-after", fields):
        return [*fields, retry_after()]
    return fields


def _refused(environ: dict[str, Any], record: RequestRecord,
             why: ApiError | BodyTooSlow | ShuttingDown) -> ApiError:
    """Finish the record of a request that gets no answer of an upstream; return what it gets."""
    error = refusal(environ, why)
    if record.failover_tried:
        error.headers += (NO_RETRY,)
    if record.account is not None:
        error.headers += tuple(record.account.fields())
    record.status, record.code, record.ending = error.status, error.code, Ending.REFUSED
    record.finish()
    return error

"""The Flask application: what happens to each request before its route, and to each answer after.

Source: specs/002 R18, R21, specs/006 W3, specs/007 R2, R3.
"""

from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.routing import MapAdapter

from app.client_socket import client_of
from app.errors import ApiError
from app.inflight import InFlight
from app.routes.errors import register_error_handlers
from app.routes.proxy import PROXY
from app.routing.headers import REQUEST_ID, sane_request_id


class _NoSessions(SessionInterface):
    """Opens none; Flask's own looks for a secret first."""

    def open_session(self, app: Flask, request: Request) -> NullSession:
        """Return what refuses to be used."""
        return NullSession()


class Application(Flask):
    """The app of one worker, without routes yet.

    in_flight        the worker's requests
    write_timeout_s  bounds each write to a client

    What Flask's hooks would do is done in the methods that call them: without functions to look
    up, sessions to open, and coroutines to look for, none of which there are.
    """

    session_interface = _NoSessions()

    def __init__(self, in_flight: InFlight, write_timeout_s: float) -> None:
        super().__init__("app", static_folder=None)
        self._in_flight = in_flight
        self._write_timeout_s = write_timeout_s
        # A path is taken as it came, or not at all.
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = True
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        register_error_handlers(self)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func`: nothing here is a coroutine."""
        return func

    def should_ignore_error(self, error: BaseException | None) -> bool:
        """Say yes: nothing is told of it. Flask's variable would keep its traceback, and itself.

        That would leave a client's whole request to the garbage collector.
        """
        return True

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return what matches a request's path; hosts make no difference."""
        if request is None:
            return None
        return MapAdapter(self.url_map, "", "/", None, "http", request.path, request.method)

    def preprocess_request(self) -> None:
        """Decide the request's id, before anything can go wrong with it; refuse what no route is.

        Raises  ApiError not_found
        """
        environ = request.environ
        environ["router.request_id"] = sane_request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        # Werkzeug strips leading slashes before it matches.
        slashes = environ.get("PATH_INFO", "").startswith("//")
        if slashes or client_of(environ).health_only and request.blueprint == PROXY:
            raise ApiError("not_found", "There is no such route.")

    def process_response(self, response: Response) -> Response:
        """Complete an answer's header and decide what becomes of its connection."""
        environ = request.environ
        # It knows the request by its traceback; one of them must go.
        request.routing_exception = None
        if REQUEST_ID not in response.headers:
            response.headers[REQUEST_ID] = environ["router.request_id"]
        client = client_of(environ)
        if client.body_pending:
            client.abandon_body()
        if self._in_flight.draining:
            client.close_after_answer()
        # A client that stops reading must not hold anything for ever.
        client.limit_writes(self._write_timeout_s)
        return response

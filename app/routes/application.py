"""The Flask application: what happens to each request before its route and to each answer after.

Source: specs/002 R18, R21, specs/006 W3, specs/007 R2, R3.
"""

import re
from collections.abc import Callable
from typing import Any

import flask
from flask import Flask, Request, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.routing import MapAdapter, PathConverter, Rule

from app.client import client_of
from app.errors import ApiError
from app.inflight import InFlight
from app.routes.cors import Cors
from app.routes.errors import register_error_handlers
from app.routing.headers import REQUEST_ID, sane_request_id

# A part of a route's path that varies, as werkzeug writes it.
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


class Blueprint(flask.Blueprint):
    """A blueprint that says on which addresses its routes live.

    on_health_address  on HEALTH_LISTEN_ADDR too; every route lives on LISTEN_ADDR
    """

    def __init__(self, name: str, *, on_health_address: bool) -> None:
        super().__init__(name, __name__)
        self.on_health_address = on_health_address


class _Rest(PathConverter):
    """The rest of a path, whatever it is: an id of a model may begin with a slash."""

    regex, part_isolating = ".+", False


class _NoSessions(SessionInterface):
    """Opens no session; Flask's own interface looks for a secret first."""

    def open_session(self, app: Flask, request: Request) -> NullSession:
        """Return a session that refuses to be used."""
        return NullSession()


class Application(Flask):
    """The app of one worker, without routes yet.

    in_flight        the worker's requests
    write_timeout_s  bounds each write to a client
    cors             who may read answers in a browser

    The work is done in the methods that call Flask's hooks: no hooks are looked up, no session is
    opened, no view function is examined for being a coroutine.
    """

    session_interface = _NoSessions()

    def __init__(self, in_flight: InFlight, write_timeout_s: float, cors: Cors) -> None:
        super().__init__("app", static_folder=None)
        self._in_flight = in_flight
        self._cors = cors
        self._write_timeout_s = write_timeout_s
        # A path is matched as it came; none is redirected.
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = True
        self.url_map.converters["rest"] = _Rest
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        register_error_handlers(self, self._no_route)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func`: nothing here is a coroutine."""
        return func

    def should_ignore_error(self, error: BaseException | None) -> bool:
        """Return True, so that Flask reports no error.

        To report one Flask keeps it in a variable of a frame in its own traceback. Only the garbage
        collector would then free the request.
        """
        return True

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return the matcher of a request's path; its host makes no difference."""
        if request is None:
            return None
        return MapAdapter(self.url_map, "", "/", None, "http", request.path, request.method)

    def full_dispatch_request(self) -> Response:
        """Answer a request. Flask's own method tells two signals of it, which nobody hears."""
        try:
            answer = self.preprocess_request() or self.dispatch_request()
        except Exception as error:
            answer = self.handle_user_exception(error)
        return self.process_response(self.make_response(answer))

    def preprocess_request(self) -> Response | None:
        """Decide the request's id before anything can go wrong; refuse what has no route here.

        Returns  the answer to an OPTIONS request, where browsers may ask
        Raises   ApiError not_found
        """
        environ = request.environ
        environ["router.request_id"] = sane_request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        # Werkzeug strips leading slashes before it matches.
        if environ.get("PATH_INFO", "").startswith("//") or (
                client_of(environ).health_only and not self._lives_on_health_address(request)):
            raise self._no_route()
        if self._cors and request.method == "OPTIONS":
            return self._cors.preflight(environ)
        return None

    def _no_route(self) -> ApiError:
        """Return the answer to a path that is none of the routes: it lists those there are."""
        health_only = client_of(request.environ).health_only
        routes = sorted((_PARAMETER.sub("{\\1}", rule.rule), *sorted(rule.methods or ()))
                        for rule in self.url_map.iter_rules()
                        if not health_only or self._is_on_health_address(rule))
        listed = "; ".join(f"{'/'.join(methods)} {path}" for path, *methods in routes)
        return ApiError("not_found", f"There is no such route. The routes are: {listed}.")

    def _lives_on_health_address(self, request: Request) -> bool:
        # By the path alone: a route that is not there does not take another method either.
        return any(rule.rule == request.path and self._is_on_health_address(rule)
                   for rule in self.url_map.iter_rules())

    def _is_on_health_address(self, rule: Rule) -> bool:
        blueprint = self.blueprints.get(rule.endpoint.partition(".")[0])
        return isinstance(blueprint, Blueprint) and blueprint.on_health_address

    def process_response(self, response: Response) -> Response:
        """Complete an answer's header and decide what becomes of its connection."""
        environ = request.environ
        # It refers to the request by its traceback, and the request to it: a cycle.
        request.routing_exception = None
        if REQUEST_ID not in response.headers:
            response.headers[REQUEST_ID] = environ["router.request_id"]
        self._cors.mark(environ, response)
        client = client_of(environ)
        if client.body_pending:
            client.abandon_body()
        if self._in_flight.draining:
            client.close_after_answer()
        # A client that stops reading must not hold anything for ever.
        client.limit_writes(self._write_timeout_s)
        return response

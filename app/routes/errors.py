"""Every error of the app, Flask's own included, in the shape OpenAI clients parse.

Source: specs/002 R21.
"""

import functools
import logging
from collections.abc import Callable

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from app.errors import RETRY_LATER, ApiError, retry_after
from app.logs import places

logger = logging.getLogger(__name__)


def register_error_handlers(app: Flask, no_route: Callable[[], ApiError]) -> None:
    """Make `app` answer every exception with an error object.

    no_route  returns the answer to a path that is none of the routes
    """
    app.register_error_handler(ApiError, answer)
    app.register_error_handler(HTTPException, functools.partial(_http_exception, no_route))
    app.register_error_handler(Exception, _unexpected)


def answer(error: ApiError) -> Response:
    """Return the response an ApiError stands for."""
    headers = (*error.headers, *[retry_after()] * (error.code in RETRY_LATER))
    return Response(error.body(), error.status, headers, content_type="application/json")


def _http_exception(no_route: Callable[[], ApiError], error: HTTPException) -> Response:
    if isinstance(error, NotFound):
        refusal = no_route()
    elif isinstance(error, MethodNotAllowed):
        allow = ", ".join(sorted(error.valid_methods or ()))
        refusal = ApiError("method_not_allowed", "This route does not take this method.",
                           headers=[("Allow", allow)])
    else:
        refusal = ApiError("bad_request", "The request is not valid.", status=error.code)
    # A client with a wrong base URL is found by this; the path could hold anything.
    logger.info("request refused", extra={
        "request_id": request.environ.get("router.request_id"), "status": refusal.status,
        "why": refusal.code})
    return answer(refusal)


def _unexpected(error: Exception) -> Response:
    # The traceback names places in the code; the exception's own text could quote the request.
    logger.error("internal error", extra={
        "request_id": request.environ.get("router.request_id"),
        "error": type(error).__name__, "where": places(error)})
    return answer(ApiError("internal_error", "Something went wrong in the router."))

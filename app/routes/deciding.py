"""The steps from a request's bytes to its decision, which answering and explaining share.

Source: specs/002 R1-R7, specs/008 R21.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from app.client import client_of
from app.config import BALANCED, PASS_UNKNOWN, Config
from app.cooling.session import Cooling
from app.errors import ApiError, BodyTooSlow, ShuttingDown, overloaded
from app.eventloop import pause
from app.inflight import Admission, InFlight
from app.open_requests import OpenRequests
from app.routes.body import judge_announced, read_body, skip_body
from app.routing.conditions import Conditions
from app.routing.decision import (Asked, Caller, Decision, Mode, Rules, decide, read_asked,
                                  refuse_unknown)
from app.routing.model_field import ModelField, find_model
from app.routing.needs import NO_NEEDS, Needs
from app.routing.needs_reader import read_needs
from app.routing.view import View, Views
from app.sticky.session import ClientStickiness, Stickiness

# Between two passes over a larger body others have a turn.
_LARGE_BYTES = 1024 * 1024


class Question(NamedTuple):
    """What one request is decided by.

    sticky  the client's; None in direct mode
    """

    view: View
    field: ModelField
    asked: Asked
    needs: Needs
    caller: Caller
    conditions: Conditions
    sticky: ClientStickiness | None


@dataclasses.dataclass(frozen=True)
class Deciding:
    """Takes requests as far as their decision; its methods are called in this order.

    views          what requests are routed by
    stickiness     of clients
    cooling        of models
    in_flight      the worker's requests
    open_requests  of the host, by model
    clock          returns seconds, monotonic
    """

    config: Config
    views: Views
    stickiness: Stickiness
    cooling: Cooling
    in_flight: InFlight
    open_requests: OpenRequests
    clock: Callable[[], float] = time.monotonic

    @functools.cached_property
    def rules(self) -> Rules:
        """How this router is set to decide."""
        return Rules(self.config.unknown_models == PASS_UNKNOWN,
                     balanced=self.config.alias_choice == BALANCED,
                     list_return_s=self.config.sticky_return_secs)

    def admit(self, environ: dict[str, Any], on_cut: Callable[[], None]) -> Admission:
        """Take in a request by its head.

        on_cut   called before the request is cut
        Returns  Admission; whoever has it calls `leave`
        Raises   ApiError
        Cost     3 µs; where it refuses a small body, it reads that
        """
        announced = judge_announced(environ, self.config.max_request_bytes)
        try:
            return self.in_flight.arrive(on_cut, announced)
        except ApiError:
            skip_body(environ)
            raise

    def body(self, environ: dict[str, Any], admission: Admission) -> bytes:
        """Read the body; see read_body."""
        return read_body(environ, self.config.max_request_bytes,
                         self.config.client_body_timeout_ms / 1000, admission)

    def read(self, body: bytes) -> tuple[View, ModelField]:
        """Return what the request is routed by, and `model` in its body.

        The view is read once, behind the body: that may have taken its time.

        Raises  ApiError
        """
        return self.views.current, find_model(body, _between(body))

    def asked(self, view: View, field: ModelField) -> Asked:
        """Return what `model` asks for. Raises ApiError: invalid_model_list."""
        return read_asked(view, field.model, self.config.max_model_list_items)

    def question(self, environ: dict[str, Any], view: View, field: ModelField, asked: Asked,
                 looks_only: bool = False) -> Question:
        """Gather what else decides.

        looks_only  the client's sticky choice is looked at, and its life not renewed
        Raises      ApiError: unknown_model
        Cost        a call of the sticky store; may switch greenlets
        """
        sticky = None
        if asked.mode is not Mode.DIRECT:
            refuse_unknown(view, asked, self.rules.pass_unknown)
            sticky = self.stickiness.for_client(
                environ, field.prompt_cache_key, asked.mode is Mode.LIST, looks_only)
        caller = sticky.caller(self.clock()) if sticky else Caller()
        needs = self._needs(asked, field)
        # Last: others have run meanwhile.
        return Question(view, field, asked, needs, caller, self.conditions(view), sticky)

    def decide(self, question: Question) -> Decision:
        """Decide; see app.routing.decision.decide."""
        return decide(question.view, question.asked, question.needs, question.caller, self.rules,
                      question.conditions)

    def conditions(self, view: View) -> Conditions:
        """Return the models as this host finds them now; for the ranking it is what cools."""
        conditions = self.cooling.conditions()
        if not self.rules.balanced or view.snapshot is None:
            return conditions
        return Conditions(conditions.cooling, open_requests=self.open_requests.counts(),
                          feed_age_s=self.clock() - view.snapshot.as_of)

    def _needs(self, asked: Asked, field: ModelField) -> Needs:
        if not asked.needs_count or not self.config.alias_fit:
            return NO_NEEDS
        between = _between(field.body)
        between()
        return read_needs(field.members, between)


def refusal(environ: dict[str, Any], why: ApiError | BodyTooSlow | ShuttingDown) -> ApiError:
    """Return the answer to a request that ends before it has another."""
    if isinstance(why, ApiError):
        return why
    if isinstance(why, BodyTooSlow):
        if why.place_needed:
            client_of(environ).yield_place()
        return overloaded("The router has too much to do to wait for this body.")
    return overloaded("The router is about to end.")


def _between(body: bytes) -> Callable[[], None]:
    return pause if len(body) > _LARGE_BYTES else _go_on


def _go_on() -> None:
    pass

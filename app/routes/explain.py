"""POST /explain: what would be done with a chat completion, and why.

Source: specs/008 R21-R26.
"""

import dataclasses
import json
from typing import Any

from flask import Response, request

from app.errors import ApiError, BodyTooSlow, ShuttingDown
from app.eventloop import pause
from app.routes.application import Blueprint
from app.routes.deciding import Deciding, Question, refusal
from app.routing.catalogue import Catalogue
from app.routing.decision import UNKNOWN, Decision, Skipped
from app.routing.explanation import explained
from app.routing.view import Snapshot


@dataclasses.dataclass(frozen=True)
class Explain:
    """Decides as a completion of a chat would be, and says so; sends, keeps and counts nothing.

    deciding  takes a request to its decision
    """

    deciding: Deciding

    def blueprint(self) -> Blueprint:
        """Return the blueprint of the route."""
        blueprint = Blueprint("explain", on_health_address=False)
        blueprint.post("/explain")(self.answer)
        return blueprint

    def answer(self) -> Response:
        """Answer a request.

        Raises  ApiError
        """
        environ = request.environ
        try:
            document = self._explain(environ)
        except (BodyTooSlow, ShuttingDown) as error:
            raise refusal(environ, error) from None
        return Response(json.dumps(document), content_type="application/json")

    def _explain(self, environ: dict[str, Any]) -> dict[str, Any]:
        deciding = self.deciding
        admission = deciding.admit(environ, _nothing_to_note)
        try:
            body = deciding.body(environ, admission)
            admission.arrived()
            view, field = deciding.read(body)
            asked = deciding.asked(view, field)
            question = deciding.question(environ, view, field, asked, looks_only=True)
            return {"asked": field.model, **self._explained(question)}
        finally:
            admission.leave()

    def _explained(self, question: Question) -> dict[str, Any]:
        view, (decision, error) = question.view, self._decide(question)
        if not self.deciding.stickiness.is_on:
            decision = dataclasses.replace(decision, sticky="")
        told = explained(view, question.asked, question.needs, question.conditions, decision, pause)
        return {**told, "error": error, "snapshot_age_ms": self._age_ms(view.snapshot),
                "allowlist_age_ms": self._age_ms(view.catalogue)}

    def _decide(self, question: Question) -> tuple[Decision, str | None]:
        """Return the decision, and the code of the error in place of one.

        That no model is left is what somebody wants to have explained.
        """
        try:
            return self.deciding.decide(question), None
        except ApiError as error:
            if error.code != "no_candidates":
                raise
            view, asked = question.view, question.asked
            unknown = [name for name in asked.names
                       if name not in view.aliases and not view.admits(name)]
            skipped = tuple([Skipped(name, UNKNOWN) for name in unknown])
            return Decision(asked.mode, (), skipped=skipped), error.code

    def _age_ms(self, feed: Snapshot | Catalogue | None) -> int | None:
        return round((self.deciding.clock() - feed.taken_at) * 1000) if feed else None


def _nothing_to_note() -> None:
    pass

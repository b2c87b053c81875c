"""A decision in words and numbers, for people to read.

Source: specs/008 R22-R24.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from app.routing.conditions import Conditions
from app.routing.decision import Asked, Decision, Placed, placed
from app.routing.needs import Needs
from app.routing.ranking import no_pause
from app.routing.view import View

# Of candidates, and of what was passed over. More are read by nobody.
MOST_ROWS = 1000
# Chutes looked at between two pauses; they take about 1 ms.
_PER_SLICE = 256


def explained(view: View, asked: Asked, needs: Needs, conditions: Conditions, decision: Decision,
              pause: Callable[[], None] = no_pause) -> dict[str, Any]:
    """Say what a decision is, and why, as a dict that can be JSON.

    The arguments are those of the decision.

    pause  called now and then to let others run
    Cost   0.5 ms for 60 chutes, no I/O; 17 ms for 20,000, at most 11 ms between two pauses

    Source: specs/008 R22-R24.
    """
    first = dataclasses.replace(decision, candidates=decision.candidates[:MOST_ROWS])
    pause()
    candidates = [shown(each) for each in placed(view, asked, needs, conditions, first)]
    pause()
    reasons = itertools.islice(_passed_over(view, asked, decision, pause), MOST_ROWS)
    return {
        "mode": asked.mode,
        "needs": {"features": sorted(needs.features), "inputs": sorted(needs.inputs),
                  "context": needs.context},
        "sticky": decision.sticky or None,
        "candidates": candidates, "candidate_count": len(decision.candidates),
        "passed_over": [{"model": model, "reason": reason} for model, reason in reasons]}


def shown(each: Placed) -> dict[str, Any]:
    """Return a candidate, and what put it where it is, as a dict that can be JSON.

    What the ranking does not know is None.
    """
    standing, candidate = each.standing, each.standing.candidate
    parts, is_ranked = candidate.parts, candidate.instances > 0
    figures = {
        "score": parts.score, "free": parts.free, "scalable": parts.scalable,
        "rate_limited": parts.rate_limited, "utilization": candidate.utilization
    } if is_ranked else {}
    known = {name: round(number, 4) for name, number in figures.items()}
    return {
        "model": standing.name, "score": known.get("score"),
        "parts": {name: known.get(name) for name in ("free", "scalable", "rate_limited")},
        "instances": candidate.instances, "utilization": known.get("utilization"),
        "tier": standing.tier, "fit": standing.fit, "missing": standing.missing,
        "cooling_s": round(each.cooling_s, 1), "in_band": each.in_band, "open": each.open}


def _passed_over(view: View, asked: Asked, decision: Decision,
                 pause: Callable[[], None]) -> Iterator[tuple[str, str]]:
    """Yield each model that is passed over, and why; none twice.

    First those that the decision names, then those that no alias asked for may choose.
    """
    told = dict[str, None]()
    for model, reason in decision.skipped:
        if model not in told:
            told[model] = None
            yield model, reason
    aliases = [view.aliases[name] for name in asked.names if name in view.aliases]
    if not aliases or view.snapshot is None:
        return
    ranking = view.snapshot.ranking
    models = view.catalogue.models if view.catalogue is not None else {}
    candidates = frozenset(decision.candidates)
    for number, candidate in enumerate(ranking.candidates, 1):
        name = candidate.name
        if name not in candidates and name not in told:
            # None of the aliases has it in its pool; the first one's reason is told.
            yield name, str(aliases[0].left_out(name, models.get(name)))
        if number % _PER_SLICE == 0:
            pause()
    for name, rejection in ranking.rejected.items():
        if name not in candidates and name not in told:
            yield name, rejection

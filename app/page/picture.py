"""The router as a picture: one JSON object, of which the page is another form.

Source: specs/008 R9, R10, R15.
"""

import collections
import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

from app.config import VERSION, Config
from app.routing.conditions import Conditions
from app.routing.decision import Asked, Mode, Placed, decide, placed
from app.routing.explanation import shown
from app.routing.needs import NO_NEEDS
from app.routing.ranking import no_pause
from app.routing.view import View
from app.seen.history import SLICE_S, ModelSeen, Seen

# Of a pool and of the models seen. A page of more is read by nobody.
MOST_ROWS = 100


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a picture is taken of.

    conditions  the models as this host finds them
    now         seconds on the monotonic clock of the view
    wall_now    the same moment, seconds since the epoch
    started_at  seconds since the epoch
    """

    config: Config
    view: View
    seen: Seen
    conditions: Conditions
    now: float
    wall_now: float
    started_at: float


def picture(moment: Moment, pause: Callable[[], None] = no_pause) -> dict[str, Any]:
    """Return the picture, ready to be JSON.

    pause  called now and then to let others run
    Cost   5 ms for each alias of 20,000 chutes, no I/O

    Source: specs/008 R9, R10.
    """
    seen, view = moment.seen, moment.view
    cooling = moment.conditions.cooling
    models = sorted(seen.models.items(), key=lambda item: (-_attempts(item[1]), item[0]))
    behind = [item for item in models[MOST_ROWS:] if item[0] in cooling][:MOST_ROWS]
    return {
        "version": VERSION, "started": utc(moment.started_at),
        "feeds": _feeds(moment),
        "aliases": _aliases(view, moment.conditions, pause),
        "models": [_model(name, model, cooling.get(name, 0.0))
                   for name, model in (*models[:MOST_ROWS], *behind)],
        "requests": {
            "active": seen.active, "streams": seen.streams, "by_status": _sum(seen.slices),
            "slice_s": SLICE_S, "slices": list(seen.slices)},
        "recent": list(seen.recent),
        "catalogue": [{"at": utc(at), "model": model, "change": change}
                      for at, model, change in seen.changes[:MOST_ROWS]],
        "configuration": moment.config.effective(),
    }


def utc(at: float) -> str:
    """Return a time, given as seconds since the epoch, as text."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


def _feeds(moment: Moment) -> list[dict[str, Any]]:
    catalogue, snapshot = moment.view.catalogue, moment.view.snapshot
    models = (catalogue.taken_at, len(catalogue.models)) if catalogue else None
    chutes = (snapshot.taken_at, len(snapshot.ranking.candidates)) if snapshot else None
    return [_feed("models", models, moment), _feed("utilization", chutes, moment)]


def _feed(name: str, content: tuple[float, int] | None, moment: Moment) -> dict[str, Any]:
    failure, age_s = moment.seen.failures.get(name), None
    if content is not None:
        age_s = round(moment.now - content[0], 1)
    return {
        "name": name, "age_s": age_s, "entries": content[1] if content else 0,
        # Since what is in use was fetched.
        "failing": failure is not None and (
            age_s is None or failure[0] > moment.wall_now - age_s),
        "last_failure": failure and {"at": utc(failure[0]), "why": failure[1]}}


def _aliases(view: View, conditions: Conditions,
             pause: Callable[[], None]) -> list[dict[str, Any]]:
    aliases = []
    for alias in view.aliases:
        count = len(view.pool(alias).members)
        candidates = [shown(each) for each in _first(view, alias, conditions)] if count else []
        aliases.append({"name": alias, "count": count, "candidates": candidates})
        pause()
    return aliases


def _first(view: View, alias: str, conditions: Conditions) -> tuple[Placed, ...]:
    """Return an alias's first candidates as a request without needs or a sticky choice has them.

    Those that cool stand behind them if they are not among them. The alias has some candidates.
    """
    asked = Asked(Mode.ALIAS, (alias,), needs_count=True)
    decision = decide(view, asked, NO_NEEDS, conditions=conditions)
    first, rest = decision.candidates[:MOST_ROWS], decision.candidates[MOST_ROWS:]
    cooling = [model for model in rest if model in conditions.cooling][:MOST_ROWS]
    return placed(view, asked, NO_NEEDS, conditions,
                  dataclasses.replace(decision, candidates=(*first, *cooling)))


def _model(name: str, seen: ModelSeen, cooling_s: float) -> dict[str, Any]:
    return {
        "model": name, "answers": seen.answers, "statuses": seen.statuses,
        "failures": seen.failures, "cooling_s": round(cooling_s, 1),
        "abandoned": seen.outcomes.get("abandoned", 0),
        "first_byte_ms": {"median": seen.first_byte_ms(0.5), "p99": seen.first_byte_ms(0.99)}}


def _attempts(seen: ModelSeen) -> int:
    return sum(seen.statuses.values()) + sum(seen.outcomes.values())


def _sum(slices: Any) -> dict[str, int]:
    total = collections.Counter[str]()
    for counts in slices:
        total.update(counts)
    return dict(sorted(total.items()))

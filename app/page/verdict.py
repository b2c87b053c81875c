"""Is the router well? In one word, and in a sentence for each thing that is wrong.

Source: specs/008 R11.
"""

import dataclasses
import enum
from typing import Any, NamedTuple

from app.page.words import age, failures, number
from app.routing.outcomes import Blame, Failure

# Below that a few unlucky requests would raise an alarm.
_FEWEST = 5
_MANY_ERRORS, _SOME_ERRORS = 0.05, 0.01
_MANY_FAILURES = 0.2
_FEWEST_FAILURES = 3
EDGE = frozenset(failure.reason for failure in Failure if failure.blame is Blame.EDGE)
# Sentences about single models.
_MOST_MODELS = 5


class Level(enum.StrEnum):
    """How well the router is."""

    WELL = "well"
    TROUBLE = "trouble"
    BAD = "bad"


class Wrong(NamedTuple):
    """A thing that is wrong, as a sentence; `name` is the model or alias that it begins with."""

    level: Level
    name: str
    says: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How well the router is, in a few words, and what is wrong: the worst first."""

    level: Level
    title: str
    wrong: tuple[Wrong, ...]


_TITLES = {Level.WELL: "The router is well",
           Level.TROUBLE: "The router works, with some trouble",
           Level.BAD: "The router is not well"}


def verdict(picture: dict[str, Any], not_ready: str | None) -> Verdict:
    """Judge a picture.

    picture    see app.page.picture
    not_ready  a sentence on why the router is not ready, or None

    Source: specs/008 R11.
    """
    wrong = [*_readiness(picture, not_ready), *_errors(picture["requests"]["by_status"]),
             *_edge(picture["models"]), *_feeds(picture["feeds"]), *_models(picture)]
    levels = [each.level for each in wrong]
    level = next((each for each in (Level.BAD, Level.TROUBLE) if each in levels), Level.WELL)
    return Verdict(level, _TITLES[level],
                   tuple(sorted(wrong, key=lambda each: each.level is not Level.BAD)))


def _readiness(picture: dict[str, Any], not_ready: str | None) -> list[Wrong]:
    if not_ready:
        return [Wrong(Level.BAD, "", f"It is not ready. {not_ready}")]
    return [Wrong(Level.BAD, alias["name"], "has no model: whoever asks for it gets a 503.")
            for alias in picture["aliases"] if not alias["count"]]


def _errors(by_status: dict[str, int]) -> list[Wrong]:
    total = sum(by_status.values())
    errors = {status: count for status, count in by_status.items() if status >= "500"}
    bad = sum(errors.values())
    if total < _FEWEST or bad < _SOME_ERRORS * total:
        return []
    listed = ", ".join(f"{number(count)} × {status}" for status, count in errors.items())
    return [Wrong(Level.BAD if bad >= _MANY_ERRORS * total else Level.TROUBLE, "",
                  f"{number(bad)} of {number(total)} requests in the last ten minutes ended in an "
                  f"error: {listed}.")]


def _edge(models: list[dict[str, Any]]) -> list[Wrong]:
    """Tell of failures that say nothing of a model: all models share one door."""
    kinds = dict[str, int]()
    for model in models:
        for kind in EDGE & model["failures"].keys():
            kinds[kind] = kinds.get(kind, 0) + model["failures"][kind]
    failed, tried = sum(kinds.values()), sum(map(attempts, models))
    if failed < _FEWEST_FAILURES or failed < _MANY_FAILURES * tried:
        return []
    return [Wrong(Level.TROUBLE, "", "The upstream can hardly be reached, whatever the model: "
                  f"{failures(kinds)} in {number(tried)} attempts.")]


def _feeds(feeds: list[dict[str, Any]]) -> list[Wrong]:
    return [Wrong(Level.TROUBLE, "",
                  f"The {feed['name']} feed cannot be fetched: {feed['last_failure']['why']}. "
                  + ("Nothing of it is here." if feed["age_s"] is None else
                     f"What is in use is {age(feed['age_s'])} old."))
            for feed in feeds if feed["failing"]]


def _models(picture: dict[str, Any]) -> list[Wrong]:
    failing = [model for model in picture["models"] if is_failing(model) or model["cooling_s"]]
    said = [Wrong(Level.TROUBLE, model["model"], _of_model(model))
            for model in failing[:_MOST_MODELS]]
    if len(failing) > _MOST_MODELS:
        said.append(Wrong(Level.TROUBLE, "", f"{len(failing) - _MOST_MODELS} more models fail."))
    return said


def _of_model(model: dict[str, Any]) -> str:
    does = f"is cooling for {age(model['cooling_s'])} more" if model["cooling_s"] else "fails"
    tried = number(attempts(model))
    return f"{does}: {failures(model['failures'])} in {tried} attempts."


def attempts(model: dict[str, Any]) -> int:
    """Return how many attempts on a model have come to an end of their own."""
    return int(model["answers"]) + sum(model["failures"].values())


def is_failing(model: dict[str, Any]) -> bool:
    """Say whether so many attempts on a model fail that somebody should know."""
    failed = sum(count for kind, count in model["failures"].items() if kind not in EDGE)
    return failed >= _FEWEST_FAILURES and failed >= _MANY_FAILURES * attempts(model)

"""Names that stand for pools of models.

Source: specs/002 R4, R50, specs/003 R33.
"""

import dataclasses
import enum
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

from app.routing.catalogue import Model
from app.routing.ranking import Candidate, no_pause

_ALL = ("*",)
_NO_MODELS: Mapping[str, Model] = {}
# Comparisons of a model with a tier between two pauses; they take about 1 ms.
_PER_SLICE = 512


class Pooled(msgspec.Struct, frozen=True, gc=False):
    """A chute that an alias may choose.

    candidate  what the ranking knows of it
    tier       number of its tier, from 0
    model      what the models feed says of it; None while that has not been fetched
    """

    candidate: Candidate
    tier: int
    model: Model | None

    @property
    def name(self) -> str:
        """Return the model id."""
        return self.candidate.name


class Filter(enum.StrEnum):
    """What leaves a chute out of an alias's pool: a key of the alias, or none of its globs."""

    EXCLUDE = "exclude"
    CONFIDENTIAL = "confidential"
    MIN_CONTEXT = "min_context"
    NOT_MATCHED = "not_matched"


@dataclasses.dataclass(frozen=True)
class Pool:
    """The chutes an alias may choose now: tier by tier, in each tier the best ranked first."""

    members: tuple[Pooled, ...] = ()

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Return the model ids, tier by tier, in each tier the best ranked first."""
        return tuple(member.name for member in self.members)

    @functools.cached_property
    def context_length(self) -> int | None:
        """Return the least context of the pool, in tokens; None unless each chute declares one."""
        models = [member.model for member in self.members]
        declared = [model.context_length for model in models if model and model.context_length]
        return min(declared) if declared and len(declared) == len(models) else None


@dataclasses.dataclass(frozen=True)
class Alias:
    """A name, the models it may choose from, and in which order.

    name          what clients send
    tiers         globs of model ids; a tier is tried whole before the next
    exclude       globs of model ids that the alias never chooses
    confidential  it chooses only what declares that it runs in a confidential environment
    min_context   it chooses only what declares a context of so many tokens

    In a glob `*` stands for any characters, slashes too, and `?` for one; case counts.
    """

    name: str
    tiers: tuple[tuple[str, ...], ...] = (_ALL,)
    exclude: tuple[str, ...] = ()
    confidential: bool = False
    min_context: int = 0

    def pool(self, candidates: Iterable[Candidate],
             models: Mapping[str, Model] = _NO_MODELS,
             pause: Callable[[], None] = no_pause) -> Pool:
        """Return what the alias may choose of the candidates.

        candidates  best first; within a tier they keep their order
        models      what the models feed says of them, by id
        pause       called after each slice of candidates to let others run
        Returns     Pool; a model that matches two tiers is in the first
        Cost        O(candidates x tiers), no I/O

        Source: specs/002 R50.
        """
        tiers = [list[Pooled]() for _ in self.tiers]
        slice_size = _PER_SLICE // len(tiers) or 1
        for number, candidate in enumerate(candidates, 1):
            name, model = candidate.name, models.get(candidate.name)
            tier = self._tier(name) if self._filter(name, model) is None else None
            if tier is not None:
                tiers[tier].append(Pooled(candidate, tier, model))
            if number % slice_size == 0:
                pause()
        return Pool(tuple(itertools.chain(*tiers)))

    def left_out(self, name: str, model: Model | None) -> Filter | None:
        """Return which filter leaves an eligible chute out of the pool; None: it is in it.

        name   of the chute
        model  what the models feed says of it
        """
        found = self._filter(name, model)
        return found or (Filter.NOT_MATCHED if self._tier(name) is None else None)

    def _tier(self, name: str) -> int | None:
        matching = (number for number, globs in enumerate(self.tiers) if _matches(globs, name))
        return next(matching, None)

    def _filter(self, name: str, model: Model | None) -> Filter | None:
        if _matches(self.exclude, name):
            return Filter.EXCLUDE
        if self.confidential and not (model and model.confidential):
            return Filter.CONFIDENTIAL
        if self.min_context and not (model and (model.context_length or 0) >= self.min_context):
            return Filter.MIN_CONTEXT
        return None


def _matches(globs: tuple[str, ...], name: str) -> bool:
    return globs == _ALL or _pattern(globs).fullmatch(name) is not None


@functools.lru_cache(maxsize=1024)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    # Without a glob nothing matches.
    return re.compile("|".join(map(_regex, globs)) or r"(?!)")


def _regex(glob: str) -> str:
    """Return a glob as a regex that takes O(length of glob x length of name)."""
    parts = [re.escape(part).replace(r"\?", ".") for part in glob.split("*")]
    if len(parts) == 1:
        return parts[0]
    first, *inner, last = parts
    # Where the text between two stars is found first, no later place serves better.
    return first + "".join(f"(?>.*?{part})" for part in inner) + ".*" + last


BUILT_IN = {name: Alias(name) for name in ("chutesai/AutoPilot", "chutesai-routing/AutoPilot")}

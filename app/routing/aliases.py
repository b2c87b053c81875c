"""Names that stand for pools of models.

Source: specs/002 R4.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

from app.routing.ranking import Candidate

_ALL = ("*",)


@dataclasses.dataclass(frozen=True)
class Alias:
    """A name, the models it may choose from, and in which order.

    name     what clients send
    tiers    globs of model ids; a tier is tried whole before the next
    exclude  globs of model ids that the alias never chooses

    In a glob `*` stands for any characters, slashes too, and `?` for one; case counts.
    """

    name: str
    tiers: tuple[tuple[str, ...], ...] = (_ALL,)
    exclude: tuple[str, ...] = ()

    def pool(self, candidates: Iterable[Candidate]) -> tuple[str, ...]:
        """Return the model ids that the alias may choose, in the order to try them.

        candidates  best first; within a tier they keep their order
        Returns     a model that matches two tiers is in the first
        Cost        O(candidates x tiers), no I/O
        """
        names = [candidate.name for candidate in candidates
                 if not _matches(self.exclude, candidate.name)]
        pool = dict[str, None]()
        for tier in self.tiers:
            pool.update(dict.fromkeys(name for name in names if _matches(tier, name)))
        return tuple(pool)


def _matches(globs: tuple[str, ...], name: str) -> bool:
    return globs == _ALL or _pattern(globs).fullmatch(name) is not None


@functools.lru_cache(maxsize=1024)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    each = (re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".") for glob in globs)
    # Without a glob nothing matches.
    return re.compile("|".join(each) or r"(?!)")


BUILT_IN = {name: Alias(name) for name in ("chutesai/AutoPilot", "chutesai-routing/AutoPilot")}

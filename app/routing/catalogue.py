"""The models the upstream offers.

Source: specs/002 R6, R7, specs/003 R9.
"""

import dataclasses

OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The allowlist: the model ids of the models feed.

    ids       never empty
    taken_at  seconds on a monotonic clock
    """

    ids: frozenset[str]
    taken_at: float

    def admits(self, model: str) -> bool:
        """Say whether a client may name this model."""
        return self.label(model) != OTHER

    def label(self, model: str) -> str:
        """Return the id that stands for a model in logs and metrics, or `other`.

        The upstream interprets names that end in `:something`: such a name is judged by the part
        before its last colon. Source: specs/002 R7.
        """
        if model in self.ids:
            return model
        base, _, suffix = model.rpartition(":")
        return base if suffix and base in self.ids else OTHER

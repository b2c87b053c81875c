"""The models the upstream offers, and what each declares of itself.

Source: specs/002 R6, R7, specs/003 R9, R20.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Model:
    """One entry of the models feed; None where it declares nothing, or nothing readable.

    id                 visible ASCII
    entry              the JSON object as it came, byte for byte
    context_length     tokens of prompt and answer together
    max_output_length  tokens of an answer
    features           such as `tools`, `json_mode`, `structured_outputs`
    inputs             such as `text`, `image`, `video`, `audio`
    confidential       whether it runs in a confidential environment
    """

    id: str
    entry: bytes = dataclasses.field(default=b"", repr=False)
    context_length: int | None = None
    max_output_length: int | None = None
    features: frozenset[str] | None = None
    inputs: frozenset[str] | None = None
    confidential: bool | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Catalogue:
    """The models of one models feed.

    models    by id, in the feed's order; never empty
    taken_at  seconds on a monotonic clock
    """

    models: Mapping[str, Model]
    taken_at: float

    @classmethod
    def of(cls, models: Iterable[Model], taken_at: float) -> "Catalogue":
        """Return the catalogue of these models; of two with the same id the first counts."""
        by_id = dict[str, Model]()
        for model in models:
            by_id.setdefault(model.id, model)
        return cls(by_id, taken_at)

    @functools.cached_property
    def ids(self) -> frozenset[str]:
        """Return the allowlist."""
        return frozenset(self.models)

    def admits(self, model: str) -> bool:
        """Say whether a client may name this model."""
        base, _, suffix = model.rpartition(":")
        return model in self.models or bool(suffix) and base in self.models

    def label(self, model: str) -> str:
        """Return the id that stands for a model in logs and metrics, or `other`.

        The upstream interprets names that end in `:something`: such a name is judged by the part
        before its last colon. Source: specs/002 R7.
        """
        if model in self.models:
            return model
        base, _, suffix = model.rpartition(":")
        return base if suffix and base in self.models else OTHER

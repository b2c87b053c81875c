"""What a request needs of a model, and whether a model declares that it has it.

A need is an estimate, so it only orders candidates and never excludes one.

Source: specs/003 R22.
"""

import dataclasses
import enum

from app.routing.catalogue import Model


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a request declares that it needs.

    features  as in Model.features
    inputs    as in Model.inputs, text left out
    context   tokens of prompt and answer together; 0: so few that every model has them
    """

    features: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    context: int = 0


NO_NEEDS = Needs()
_UNDECLARED = Model("")


class Fit(enum.StrEnum):
    """Whether a model declares what a request needs."""

    YES = "yes"
    UNKNOWN = "unknown"
    NO = "no"


def fit(needs: Needs, model: Model | None) -> tuple[Fit, tuple[str, ...]]:
    """Compare what a request needs with what a model declares.

    model    None: of a chute that no models feed describes
    Returns  the fit, and the names of what the model declares itself without
    Cost     1 µs, no I/O

    Source: specs/003 R22.
    """
    model, missing, unknown = model or _UNDECLARED, list[str](), False
    for needed, declared in ((needs.features, model.features), (needs.inputs, model.inputs)):
        if declared is None:
            unknown = unknown or bool(needed)
        else:
            missing += sorted(needed - declared)
    if needs.context:
        if model.context_length is None:
            unknown = True
        elif model.context_length < needs.context:
            missing.append("context")
    if missing:
        return Fit.NO, tuple(missing)
    return (Fit.UNKNOWN if unknown else Fit.YES), ()

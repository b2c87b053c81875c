"""What this host has seen of the models itself, which is newer than any feed.

Source: specs/003 R38, R48, R60.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The models as this host finds them at the moment a request is decided.

    cooling        model -> seconds until it is tried again; the probe that is due is not in it for
                   the request that makes it
    open_requests  model -> requests of this host that are open on it and began after the
                   utilization feed's own timestamp
    feed_age_s     age of what the utilization feed says, seconds
    """

    cooling: Mapping[str, float] = dataclasses.field(default_factory=dict)
    open_requests: Mapping[str, int] = dataclasses.field(default_factory=dict)
    feed_age_s: float = 0.0


QUIET = Conditions()

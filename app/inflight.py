"""The requests under way in one worker: how many there may be, and an end to them at shutdown.

Source: specs/007 R1, R3.
"""

from collections.abc import Callable

from app.errors import ApiError, ShuttingDown
from app.eventloop import Greenlet, getcurrent, throw_soon

# HTTP takes whole seconds. By then the load may have passed.
_RETRY_AFTER = ("Retry-After", "1")


class InFlight:
    """Admits requests, and can cut those it has admitted.

    limit     beyond this many a request is refused
    draining  the worker has been told to stop
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[Greenlet, Callable[[], None]] = {}
        self.draining = False

    def __contains__(self, serving: Greenlet) -> bool:
        return serving in self._requests

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self, on_cut: Callable[[], None]) -> Callable[[], None]:
        """Take in the request that the current greenlet serves.

        on_cut   called before the request is cut
        Returns  a function that takes it out again
        Raises   ApiError overloaded
        Cost     1 µs, no switch

        Source: specs/007 R1.
        """
        if len(self._requests) >= self._limit:
            raise overloaded("The router is serving as many requests as it takes.")
        serving = getcurrent()
        self._requests[serving] = on_cut

        def leave() -> None:
            self._requests.pop(serving, None)

        return leave

    def cut(self) -> None:
        """End every request under way: by a refusal before its commit point, by a cut after.

        Source: specs/007 R3.
        """
        for serving, on_cut in self._requests.items():
            # Here and not where it is caught: a request that waits for its client to read is
            # interrupted in the server's code.
            on_cut()
            throw_soon(serving, ShuttingDown())


def overloaded(message: str) -> ApiError:
    """Return the refusal of a request that can be sent again, here or elsewhere."""
    return ApiError("overloaded", message, headers=[_RETRY_AFTER])

"""The requests under way in one worker: how many there may be, and an end to them at shutdown.

A request arrives, then it is in flight. While its body arrives it takes no place in flight, so
clients that send slowly keep nobody out. It takes its connection and, if its body is large, memory.
Where either runs short, slow bodies give way.

Source: specs/007 R1, R3, R20, R24, R25.
"""

import time
from collections.abc import Callable

from app.errors import BodyTooSlow, ShuttingDown, overloaded
from app.eventloop import Greenlet, getcurrent, throw_soon

# How slow a body is shows only after a while.
_BODY_LEAST_S = 0.5
# One that brings less than this, 128 kbit/s, drips; that shows sooner. Where connections are taken
# it holds its own for nothing, like one that waits for the rest of a head.
_DRIP_BYTES_A_SECOND = 16 * 1024
_DRIP_S = 0.1


class Admission:
    """What one request holds of its worker, from its head to its end.

    serving    the greenlet that serves it
    on_cut     called before the request is cut
    came       bytes of the body that are here
    placed     it has a place in flight
    gives_way  it has been told to end
    """

    def __init__(self, in_flight: "InFlight", on_cut: Callable[[], None], now: float) -> None:
        self.serving = getcurrent()
        self.on_cut = on_cut
        self.came = 0
        self.placed = self.gives_way = False
        self.began_at = now
        self.counted = 0
        self._in_flight = in_flight

    def count_body(self, size: int) -> None:
        """Take memory for so many bytes more.

        Raises  ApiError overloaded
        """
        self._in_flight.take_memory(self, size)

    def begin(self) -> None:
        """Take a place in flight: the body is here.

        Raises  ApiError overloaded
        """
        self._in_flight.begin(self)

    def release_body(self) -> None:
        """Give the memory of the body back: nothing will send it again."""
        self._in_flight.body_bytes -= self.counted
        self.counted = 0

    def leave(self) -> None:
        """Give everything back."""
        self.release_body()
        self._in_flight.leave(self)
        # Whoever asked to be told of a cut has this object: a cycle, with the request in it.
        self.on_cut = _nobody_to_tell


class InFlight:
    """Admits requests, and can cut those it has admitted.

    limit           beyond this many in flight a request is refused
    max_body_bytes  bodies may take so much memory together
    clock           returns seconds, monotonic
    draining        the worker has been told to stop
    body_bytes      what bodies take now
    """

    def __init__(self, limit: int, max_body_bytes: int,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._max_body_bytes, self._clock = limit, max_body_bytes, clock
        self._admitted: dict[Greenlet, Admission] = {}
        self._count = 0
        self.body_bytes = 0
        self.draining = False

    def __contains__(self, serving: Greenlet) -> bool:
        return serving in self._admitted

    def __len__(self) -> int:
        return len(self._admitted)

    def arrive(self, on_cut: Callable[[], None], announced: int) -> Admission:
        """Take in the request that the current greenlet serves; its body is still to come.

        on_cut     called before the request is cut
        announced  bytes of its body; 0 where it announces none or no length
        Returns    Admission; whoever has it calls `leave`
        Raises     ApiError overloaded
        Cost       2 µs, no switch

        Source: specs/007 R1, R20.
        """
        self._refuse_beyond_limit()
        admission = Admission(self, on_cut, self._clock())
        self.take_memory(admission, announced)
        self._admitted[admission.serving] = admission
        return admission

    def _refuse_beyond_limit(self) -> None:
        if self._count >= self._limit:
            raise overloaded("The router is serving as many requests as it takes.")

    def begin(self, admission: Admission) -> None:
        """Count a request that has arrived; see Admission."""
        self._refuse_beyond_limit()
        admission.placed = True
        self._count += 1

    def leave(self, admission: Admission) -> None:
        """Forget a request; see Admission."""
        if self._admitted.pop(admission.serving, None) and admission.placed:
            self._count -= 1

    def take_memory(self, admission: Admission, size: int) -> None:
        """Count bytes of a body; see Admission."""
        while self.body_bytes + size > self._max_body_bytes:
            if not self._make_memory(admission, admission.counted + size):
                raise overloaded("The router holds as many bytes of request bodies as it takes.")
        self.body_bytes += size
        admission.counted += size

    def _make_memory(self, wants: Admission, bytes_wanted: int) -> bool:
        """Refuse one request whose body arrives, for another's sake; say whether there was one.

        Cost  O(requests), no switch
        """
        others = [each for each in self._arriving() if each is not wants]
        least = self._clock() - _BODY_LEAST_S
        if slow := [each for each in others if each.began_at <= least]:
            _refuse(min(slow, key=self._bytes_a_second), place_needed=False)
            return True
        # What is only announced must not keep out what is here.
        most = max(others, key=_still_to_come, default=None)
        if most is None or _still_to_come(most) <= bytes_wanted:
            return False
        _refuse(most, place_needed=False)
        return True

    def make_room(self, places: int) -> None:
        """Refuse all requests whose bodies drip; of the others the slowest, to have `places` free.

        Cost  O(requests), no switch
        """
        now = self._clock()
        by_speed = sorted((each for each in self._arriving() if now - each.began_at >= _DRIP_S),
                          key=self._bytes_a_second)
        for number, each in enumerate(by_speed):
            if self._bytes_a_second(each) < _DRIP_BYTES_A_SECOND or (
                    number < places and now - each.began_at >= _BODY_LEAST_S):
                _refuse(each, place_needed=True)

    def _arriving(self) -> list[Admission]:
        """Return those whose bodies are still arriving and may give way."""
        return [each for each in self._admitted.values() if not each.placed and not each.gives_way]

    def _bytes_a_second(self, each: Admission) -> float:
        return each.came / max(_DRIP_S, self._clock() - each.began_at)

    def cut(self) -> None:
        """End every request under way: by a refusal before its commit point, by a cut after.

        Source: specs/007 R3.
        """
        for serving, admission in self._admitted.items():
            # Here and not where it is caught: a request that waits for its client to read is
            # interrupted in the server's code.
            admission.on_cut()
            throw_soon(serving, ShuttingDown())


def _still_to_come(each: Admission) -> int:
    return each.counted - each.came


def _refuse(each: Admission, *, place_needed: bool) -> None:
    each.gives_way = True
    each.release_body()
    throw_soon(each.serving, BodyTooSlow(place_needed))


def _nobody_to_tell() -> None:
    pass

"""The requests under way in one worker: how many there may be, and an end to them at shutdown.

A request arrives, then it is in flight. While its body arrives it takes no place in flight, so
clients that send slowly keep nobody out. It takes its connection and, if its body is large, memory.
Where either runs short, bodies that drip give way. Of those that come well none does for another
like it: whatever had come of it would have come in vain.

Source: specs/007 R1, R3, R20, R24-R26.
"""

import math
import time
from collections.abc import Callable

from app.errors import BodyTooSlow, ShuttingDown, overloaded
from app.eventloop import Greenlet, after_this_turn, getcurrent

# A body that brings less than this, 128 kbit/s, drips. Where connections are taken it holds its own
# for nothing, like one that waits for the rest of a head; that shows soon.
_DRIP_BYTES_A_SECOND = 16 * 1024
_DRIP_S = 0.1
# Where memory is short a client may first wait for 100 Continue to reach it, and TCP gather way.
_BODY_LEAST_S = 0.5


class Admission:
    """What one request holds of its worker, from its head to its end.

    serving    the greenlet that serves it
    on_cut     called before the request is cut
    came       bytes of the body that are here, with its framing
    within_s   how long the whole body may take, seconds
    whole      the body is here: it does not give way any more
    placed     it has a place in flight
    gives_way  it has been told to end
    """

    def __init__(self, in_flight: "InFlight", on_cut: Callable[[], None], now: float) -> None:
        self.serving = getcurrent()
        self.on_cut = on_cut
        self.came, self.within_s = 0, math.inf
        self.whole = self.placed = self.gives_way = self.place_needed = False
        self.began_at = now
        self.counted = 0
        self._in_flight = in_flight

    @property
    def to_come(self) -> int:
        """Return how many bytes that are counted are not here."""
        return self.counted - self.came

    def drips(self, now: float) -> bool:
        """Say whether the body drips; one of which nothing has come yet does."""
        return self.came < max(_DRIP_S, now - self.began_at) * _DRIP_BYTES_A_SECOND

    def is_late(self, now: float) -> bool:
        """Say whether the body has long dripped, or will not be whole in its time at its pace."""
        age_s = now - self.began_at
        return age_s >= _BODY_LEAST_S and (
            self.drips(now) or self.came * self.within_s < self.counted * age_s)

    def count_body(self, size: int) -> None:
        """Take memory for so many bytes more.

        Raises  ApiError overloaded
        """
        self._in_flight.take_memory(self, size)

    def arrived(self) -> None:
        """Take note that the body is here.

        Raises  BodyTooSlow: what it holds has been promised to another
        """
        if self.gives_way:
            raise BodyTooSlow(self.place_needed)
        self.whole = True

    def begin(self) -> None:
        """Take a place in flight: the body is here.

        Raises  ApiError overloaded, BodyTooSlow
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
        admission.arrived()
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
        now = self._clock()
        # What is only announced must not keep out what is here.
        slow = [each for each in self._arriving() if each is not wants and (
            each.is_late(now) or each.drips(now) and each.to_come > bytes_wanted)]
        if slow:
            self._refuse(max(slow, key=lambda each: (each.drips(now), each.to_come)))
        return bool(slow)

    def make_room(self, someone_waits: bool) -> None:
        """Refuse all requests whose bodies drip; if none does and someone waits, the youngest.

        Cost  O(requests), no switch
        """
        now, arriving = self._clock(), self._arriving()
        drips = [each for each in arriving if each.drips(now) and now - each.began_at >= _DRIP_S]
        # The youngest loses least.
        for each in drips or (arriving[-1:] if someone_waits else []):
            self._refuse(each, place_needed=True)

    def _arriving(self) -> list[Admission]:
        """Return those whose bodies are still arriving and may give way, the youngest last."""
        return [each for each in self._admitted.values() if not each.whole and not each.gives_way]

    def _refuse(self, each: Admission, *, place_needed: bool = False) -> None:
        each.gives_way, each.place_needed = True, place_needed
        each.release_body()
        self._end_soon(each, BodyTooSlow(place_needed))

    def _end_soon(self, each: Admission, error: BaseException) -> None:
        def end() -> None:
            # It may have ended in this turn. Its greenlet serves what comes next on the connection.
            if self._admitted.get(each.serving) is each:
                each.serving.throw(error)
        after_this_turn(end)

    def cut(self) -> None:
        """End every request under way: by a refusal before its commit point, by a cut after.

        Source: specs/007 R3.
        """
        for admission in self._admitted.values():
            # Here and not where it is caught: a request that waits for its client to read is
            # interrupted in the server's code.
            admission.on_cut()
            self._end_soon(admission, ShuttingDown())


def _nobody_to_tell() -> None:
    pass

"""Who is let in, on a clock of the test's own."""

import gevent
import pytest

from app.errors import ApiError, BodyTooSlow
from app.inflight import InFlight
from app.upstream.waiting import Waiting


class Worker:
    """A worker's requests, each served by a greenlet of its own."""

    def __init__(self, limit, max_body_bytes):
        self.now, self.told = 0.0, []
        self.in_flight = InFlight(limit, max_body_bytes, lambda: self.now)

    def arrive(self, announced=0):
        """Take in a request; its greenlet waits until it is told to end."""
        admissions = []

        def serve():
            admissions.append(self.in_flight.arrive(lambda: None, announced))
            try:
                gevent.sleep(60)
            except BodyTooSlow:
                self.told.append(admissions[0])
                admissions[0].leave()

        greenlet = gevent.spawn(serve)
        gevent.sleep(0)
        if not admissions:
            greenlet.get()
        return admissions[0]


def refused(call, *arguments):
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    assert (caught.value.status, caught.value.code) == (503, "overloaded")


def test_requests_are_admitted_up_to_the_limit_and_again_when_one_has_left():
    """007-R1"""
    in_flight = InFlight(1, 9)
    admission = in_flight.arrive(lambda: None, 0)
    admission.begin()
    refused(in_flight.arrive, lambda: None, 0)
    admission.leave()
    admission.leave()
    assert len(in_flight) == 0
    in_flight.arrive(lambda: None, 0).begin()


def test_a_request_whose_body_still_arrives_takes_no_place_in_flight():
    """007-R20"""
    worker = Worker(1, 9)
    first, second = worker.arrive(), worker.arrive()
    assert len(worker.in_flight) == 2
    second.begin()
    refused(first.begin)


def test_memory_is_counted_as_announced_and_given_back_at_commit():
    """007-R20"""
    worker = Worker(9, 100)
    holds = worker.arrive(60)
    holds.begin()
    refused(worker.arrive, 41)
    worker.arrive(40).begin()
    refused(worker.arrive, 1)
    holds.release_body()
    holds.leave()
    assert worker.in_flight.body_bytes == 40


def test_a_chunked_body_is_counted_as_it_comes():
    """007-R20"""
    worker = Worker(9, 100)
    chunked = worker.arrive()
    chunked.count_body(60)
    chunked.count_body(40)
    refused(chunked.count_body, 1)
    chunked.leave()
    assert worker.in_flight.body_bytes == 0


def test_where_memory_runs_short_the_slowest_body_gives_way_but_no_young_one():
    """007-R20"""
    worker = Worker(9, 100)
    fast, slow, whole = worker.arrive(30), worker.arrive(30), worker.arrive(30)
    whole.begin()
    fast.came, slow.came, worker.now = 20, 10, 0.4
    refused(worker.arrive, 20)
    worker.now = 0.6
    late = worker.arrive(20)
    gevent.sleep(0.001)
    assert worker.told == [slow] and worker.in_flight.body_bytes == 80
    refused(worker.arrive, 60)
    gevent.sleep(0.001)
    assert worker.told == [slow, fast] and not late.gives_way


def test_a_body_that_has_given_way_is_not_asked_again():
    """007-R20"""
    worker = Worker(9, 100)
    worker.arrive(30)
    worker.now = 1.0
    worker.in_flight.make_room(1)
    worker.in_flight.make_room(1)
    gevent.sleep(0.001)
    assert len(worker.in_flight) == 0 and len(worker.told) == 1


def test_what_is_only_announced_gives_way_to_what_asks_for_less():
    """007-R24: at once, and that of which most is still to come."""
    worker = Worker(9, 100)
    large, larger = worker.arrive(40), worker.arrive(50)
    larger.came = 5
    small = worker.arrive(20)
    gevent.sleep(0.001)
    assert worker.told == [larger] and worker.in_flight.body_bytes == 60
    # It asks for as much as any has still to bring.
    refused(worker.arrive, 41)
    large.came, small.came = 39, 20
    refused(worker.arrive, 60)
    assert worker.told == [larger]


def test_a_chunked_body_asks_for_all_that_it_holds():
    """007-R24: a small piece of a large body is no small body."""
    worker = Worker(9, 100)
    worker.arrive(50)
    chunked = worker.arrive()
    chunked.count_body(50)
    refused(chunked.count_body, 1)
    assert worker.told == []


def test_all_bodies_that_drip_give_way_at_once_where_places_are_needed():
    """007-R25"""
    worker = Worker(9, 10**6)
    slow, fast = worker.arrive(), worker.arrive()
    drips = [worker.arrive() for _ in range(4)]
    fast.came, slow.came = 10**5, 10**4
    for drip in drips:
        drip.came = 100
    worker.now = 0.09
    worker.in_flight.make_room(1)
    gevent.sleep(0.001)
    assert worker.told == []
    worker.now = 0.11
    worker.in_flight.make_room(1)
    gevent.sleep(0.001)
    assert worker.told == drips
    # None drips now: the slowest, and as many as are needed.
    worker.now = 0.5
    worker.in_flight.make_room(1)
    gevent.sleep(0.001)
    assert worker.told == [*drips, slow]


def test_so_many_may_wait_for_one_model_and_as_many_for_another():
    """007-R22"""
    waiting = Waiting(2)
    for model in ("a", "a", "b"):
        waiting.enter(model)
    refused(waiting.enter, "a")
    assert waiting.is_full("a") and not waiting.is_full("b")
    waiting.leave("a")
    waiting.enter("a")

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


def test_where_memory_runs_short_a_body_that_drips_gives_way_but_no_young_one():
    """007-R20"""
    worker = Worker(9, 100_000)
    fast, slow, whole = worker.arrive(30_000), worker.arrive(30_000), worker.arrive(30_000)
    whole.begin()
    fast.came, slow.came, worker.now = 20_000, 6_000, 0.4
    refused(worker.arrive, 30_000)
    worker.now = 0.6
    late = worker.arrive(20_000)
    gevent.sleep(0.001)
    assert worker.told == [slow] and worker.in_flight.body_bytes == 80_000
    refused(worker.arrive, 60_000)
    assert worker.told == [slow] and not late.gives_way


def test_a_body_too_slow_for_its_own_deadline_gives_way_after_those_that_drip():
    """007-R20"""
    worker = Worker(9, 10**6)
    in_time, too_slow, drip = worker.arrive(400_000), worker.arrive(400_000), worker.arrive(200_000)
    for each in (in_time, too_slow, drip):
        each.within_s = 10
    in_time.came, too_slow.came, drip.came, worker.now = 50_000, 30_000, 1, 1.0
    worker.arrive(150_000)
    gevent.sleep(0.001)
    assert worker.told == [drip]
    worker.arrive(400_000).came = 100_000
    gevent.sleep(0.001)
    assert worker.told == [drip, too_slow]
    refused(worker.arrive, 400_000)
    assert not in_time.gives_way


@pytest.mark.parametrize("asked_a_second", [4, 20])
def test_where_more_is_sent_than_there_is_memory_for_as_much_is_served(asked_a_second):
    """007-R20: bodies of two seconds each, and room for eight of them at a time."""
    size, steps_a_second, seconds = 4_000_000, 20, 9
    worker, sending, served = Worker(99, 8 * size), [], 0
    for step in range(seconds * steps_a_second):
        worker.now = step / steps_a_second
        if step % (steps_a_second // asked_a_second) == 0:
            try:
                sending.append(worker.arrive(size))
                sending[-1].within_s = 45
            except ApiError as error:
                assert error.code == "overloaded"
        for each in list(sending):
            each.came += size // 2 // steps_a_second
            if each.came == size:
                each.begin()
                each.leave()
                sending.remove(each)
                served += 1
    assert worker.told == [] and served >= 4 * (seconds - 2)


def test_what_is_only_announced_gives_way_before_what_comes():
    """007-R24: however young it is, and slow what comes."""
    worker = Worker(99, 1_400_000)
    comes = worker.arrive(400_000)
    worker.now = 10.0
    comes.came, comes.within_s = 200_000, 40
    for _ in range(3):
        announced = [worker.arrive(300_000) for _ in range(3)]
        refused(worker.arrive, 300_000)
        worker.now += 0.4
        small = worker.arrive(150_000)
        gevent.sleep(0.001)
        assert len(worker.told) == 1 and worker.told.pop() in announced and not comes.gives_way
        for each in (small, *announced):
            each.leave()


def test_a_request_whose_body_is_here_gives_way_to_nothing_though_it_takes_no_place():
    """007-R26, 008-R25"""
    worker = Worker(1, 100)
    explained = worker.arrive(60)
    worker.now = 1.0
    explained.arrived()
    refused(worker.arrive, 50)
    worker.in_flight.make_room(True)
    gevent.sleep(0.001)
    assert worker.told == []
    worker.arrive().begin()


def test_a_body_that_becomes_whole_as_it_gives_way_is_refused_and_nothing_comes_later():
    """007-R26: its greenlet already waits for what comes next on the connection."""
    worker = Worker(9, 100)
    late = worker.arrive(60)
    worker.now = 1.0
    worker.arrive(50)
    with pytest.raises(BodyTooSlow):
        late.begin()
    late.leave()
    gevent.sleep(0.001)
    assert worker.told == [] and worker.in_flight.body_bytes == 50


def test_a_body_that_has_given_way_is_not_asked_again():
    """007-R20"""
    worker = Worker(9, 100)
    worker.arrive(30)
    worker.now = 1.0
    worker.in_flight.make_room(True)
    worker.in_flight.make_room(True)
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
    fast.came, slow.came = 10**5, 2000
    for drip in drips:
        drip.came = 100
    worker.now = 0.09
    worker.in_flight.make_room(False)
    gevent.sleep(0.001)
    assert worker.told == []
    worker.now = 0.11
    worker.in_flight.make_room(True)
    gevent.sleep(0.001)
    assert worker.told == drips


def test_without_one_that_drips_the_youngest_body_gives_way_to_a_connection_that_waits():
    """007-R25: whatever has come of it; and to no other."""
    worker = Worker(9, 10**6)
    bodies = [worker.arrive() for _ in range(3)]
    worker.arrive().begin()
    for rank, body in enumerate(bodies):
        body.came = 10**5 * (rank + 1)
    worker.now = 1.0
    worker.in_flight.make_room(False)
    gevent.sleep(0.001)
    assert worker.told == []
    worker.in_flight.make_room(True)
    gevent.sleep(0.001)
    assert worker.told == bodies[2:]


def test_so_many_may_wait_for_one_model_and_as_many_for_another():
    """007-R22"""
    waiting = Waiting(2)
    for model in ("a", "a", "b"):
        waiting.enter(model)
    refused(waiting.enter, "a")
    assert waiting.is_full("a") and not waiting.is_full("b")
    waiting.leave("a")
    waiting.enter("a")

"""Cooling as the workers of a host share it: two at once, one killed, and the store in trouble."""

import logging
import multiprocessing
import os
import signal
import sqlite3

import pytest

from app import metrics
from app.cooling.records import HostRecords
from app.cooling.session import Cooling
from app.routing.catalogue import Catalogue, Model
from app.routing.conditions import QUIET
from app.routing.cooling import HEALTHY, CoolingSettings, Record
from app.routing.outcomes import Attempt, Blame, Failure
from app.routing.ranking import UtilizationRow
from app.routing.view import View, Views

HANGS = Failure.HEADER_TIMEOUT
REFUSED = Failure.UNREACHABLE
FORK = multiprocessing.get_context("fork")


def listing(*names):
    return View(Catalogue.of(map(Model, names), 0.0))


LISTED = listing("m", "other", "counted", "m" * 257, *(f"m{number}" for number in range(520)))


class Host:
    """A host with some workers and a clock to set."""

    def __init__(self, folder, caplog):
        self.now, self.folder, self.caplog = 1000.0, folder, caplog
        caplog.set_level(logging.INFO)
        self.opened = []

    def worker(self, settings=CoolingSettings(), folder=None):
        records = HostRecords(folder or self.folder, lambda: self.now)
        self.opened.append(records)
        return Cooling(records, settings, 2.0, lambda: self.now, lambda: 0.0)

    def said(self):
        return [(line.message, line.model) for line in self.caplog.records
                if line.message.startswith("model ")]

    def cool(self, worker, model="m", view=LISTED):
        for _ in range(3):
            end(worker, HANGS, model, view)


@pytest.fixture
def host(tmp_path, caplog):
    made = Host(tmp_path, caplog)
    yield made
    for records in made.opened:
        records.close()


def ended(outcome, model="m", took_s=0.0, blame=None):
    """Return an attempt: a failure, a status, or None for one that was abandoned."""
    failure = outcome if isinstance(outcome, Failure) else None
    return Attempt(model, failure, blame or (failure.blame if failure else Blame.NOBODY),
                   None if failure else outcome, "", took_s * 1000)


def request(worker, header_timeout_s=10.0, view=LISTED):
    return worker.for_request(worker.conditions(), view, header_timeout_s)


def end(worker, outcome, model="m", view=LISTED, **more):
    one = request(worker, view=view)
    one.attempted(ended(outcome, model, **more))
    one.give_back()


def cooling(worker):
    return dict(worker.conditions().cooling)


def test_the_failures_of_all_workers_count_together(host):
    """003-R40"""
    workers = [host.worker() for _ in range(3)]
    for worker in workers:
        assert not cooling(worker)
        end(worker, HANGS)
    assert [cooling(worker) for worker in workers] == [{"m": 5.0}] * 3
    end(workers[0], 200)
    assert [cooling(worker) for worker in workers] == [{}] * 3
    assert host.said() == [("model cooling", "m"), ("model cooling no more", "m")]


@pytest.mark.parametrize("outcome, blame", [
    (REFUSED, None), (Failure.CONNECTION_LOST, None), (Failure.EDGE_503, None),
    (Failure.AT_CAPACITY, None), (HANGS, Blame.NOBODY), (429, None), (400, None), (None, None)])
def test_what_does_not_blame_the_model_does_not_count(host, outcome, blame):
    """003-R36: nor does it end a row of failures."""
    worker = host.worker()
    for _ in range(2):
        end(worker, HANGS)
    for _ in range(5):
        end(worker, outcome, blame=blame)
    assert cooling(worker) == {}
    end(worker, HANGS)
    assert cooling(worker) == {"m": 5.0}


def test_one_request_of_the_host_is_the_probe(host):
    """003-R38"""
    one, two = host.worker(), host.worker()
    host.cool(one)
    host.now += 5.0
    assert cooling(two) == {}
    probe, other = request(two), request(one)
    assert probe.may_try("m") and not other.may_try("m")
    # Whoever is decided now knows it, and has the model at the end.
    assert cooling(one) == {"m": 12.0} and request(one).may_try("m")
    probe.attempted(ended(200, took_s=3.0))
    assert cooling(one) == {} and request(one).may_try("m")
    assert host.said()[-1] == ("model cooling no more", "m")


def test_the_probes_failure_begins_the_next_cooling(host):
    """003-R38, 003-R37"""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    probe = request(worker)
    assert probe.may_try("m")
    host.now += 10.0
    probe.attempted(ended(HANGS, took_s=10.000001))
    probe.give_back()
    assert cooling(worker) == {"m": 10.0}
    assert host.said() == [("model cooling", "m")] * 2


@pytest.mark.parametrize("outcome", [None, 429, REFUSED, "nothing told"])
def test_a_probe_without_an_outcome_is_given_back(host, outcome):
    """003-R38"""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    probe = request(worker)
    assert probe.may_try("m")
    if outcome == "nothing told":
        probe.give_back()
    else:
        probe.attempted(ended(outcome))
    assert cooling(worker) == {} and request(worker).may_try("m")
    assert cooling(worker) == {"m": 12.0}


def test_a_probe_that_is_not_over_in_time_is_given_back(host):
    """003-R38, 007-R39: its worker was killed"""
    one, two = host.worker(), host.worker()
    host.cool(one)
    host.now += 5.0
    assert request(one, header_timeout_s=10.0).may_try("m")
    host.now += 11.9
    assert cooling(two)
    host.now += 0.1
    assert cooling(two) == {} and request(two).may_try("m")


def test_a_probe_is_held_no_longer_than_the_longest_cooling(host):
    """003-R38: an answer that is not streamed has ten minutes."""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    assert request(worker, header_timeout_s=600.0).may_try("m")
    assert cooling(worker) == {"m": 60.0}
    host.now += 60.0
    assert cooling(worker) == {} and request(worker).may_try("m")


def test_a_probe_that_fails_when_another_has_been_made_is_no_news(host):
    """003-R38"""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    first, second = request(worker, header_timeout_s=600.0), request(worker)
    assert first.may_try("m")
    host.now += 60.0
    assert second.may_try("m")
    second.attempted(ended(HANGS))
    assert cooling(worker) == {"m": 5.0}
    host.now += 5.0
    first.attempted(ended(HANGS, took_s=65.0))
    assert cooling(worker) == {} and request(worker).may_try("m")


def test_a_probe_that_fails_late_and_alone_begins_the_next_cooling(host):
    """003-R38"""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    probe = request(worker, header_timeout_s=600.0)
    assert probe.may_try("m")
    host.now += 600.0
    probe.attempted(ended(HANGS, took_s=600.000001))
    assert cooling(worker) == {"m": 5.0}


def test_a_probe_that_was_given_back_late_takes_none_from_another(host):
    """003-R38"""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    late, other = request(worker), request(worker)
    assert late.may_try("m")
    host.now += 12.0
    assert other.may_try("m")
    late.give_back()
    assert cooling(worker) == {"m": 12.0}


def test_cooling_is_switched_off(host):
    """003-R37"""
    worker = host.worker(CoolingSettings(0.0, 60.0, 1))
    for _ in range(9):
        end(worker, HANGS)
    assert worker.conditions() is QUIET and request(worker).may_try("m")


def test_a_healthy_day_costs_no_look_at_the_store(host, monkeypatch):
    """003-R40: nor does the trouble of another model."""
    worker, other = host.worker(), host.worker()
    host.cool(worker, "other")
    worker.conditions()
    for name in ("read", "write"):
        monkeypatch.setattr(worker.records._database, name, lambda *_: pytest.fail("a look"))
    one = request(worker)
    worker.conditions()
    assert one.may_try("m")
    one.attempted(ended(200))
    one.give_back()
    assert cooling(other) == {"other": 5.0}


def fail_once(folder, times):
    records = HostRecords(folder, lambda: 1.0)
    for _ in range(times):
        while records.change("m", lambda record: record._replace(
                failures=record.failures + 1)) is None:
            records._rests_until = 0.0


def test_no_failure_is_lost_between_workers(host):
    """003-R40"""
    children = [FORK.Process(target=fail_once, args=(host.folder, 200)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert host.worker().records.all()["m"].failures == 800


def claim(folder, together, claimed):
    worker = Cooling(HostRecords(folder, lambda: 1005.0), CoolingSettings(), 2.0, lambda: 1005.0)
    one = request(worker)
    together.wait()
    claimed.put(one.may_try("m"))


def test_of_many_workers_that_would_probe_at_once_one_does(host):
    """003-R38, 003-R40"""
    for _ in range(10):
        host.cool(host.worker(), "m")
        claimed, together = FORK.SimpleQueue(), FORK.Barrier(4)
        children = [FORK.Process(target=claim, args=(host.folder, together, claimed))
                    for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert sorted(claimed.get() for _ in children) == [False, False, False, True]
        (host.folder / "cooling.sqlite").unlink()
        for records in host.opened:
            records.keep()


def die_changing(folder):
    records = HostRecords(folder, lambda: 1.0)
    records._word.change = lambda: os.kill(os.getpid(), signal.SIGKILL)
    records.change("m", lambda record: record._replace(failures=3, until=1005.0))


def test_a_worker_killed_between_a_change_and_the_word_is_made_up_for(host):
    """003-R41, 007-R39"""
    worker = host.worker()
    child = FORK.Process(target=die_changing, args=(host.folder,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and cooling(worker) == {}
    worker.records.keep()
    assert cooling(worker) == {"m": 5.0}


def test_a_locked_store_costs_cooling_and_one_wait_a_second(host, monkeypatch):
    """003-R41"""
    worker = host.worker()
    calls, write = [], worker.records._database.write
    monkeypatch.setattr(worker.records._database, "write",
                        lambda *given: calls.append(given) or write(*given))
    holder = sqlite3.connect(host.folder / "cooling.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    for _ in range(20):
        end(worker, HANGS)
    assert len(calls) == 1 and worker.conditions() is QUIET
    host.now += 1.0
    end(worker, HANGS)
    assert len(calls) == 2
    holder.execute("ROLLBACK")
    holder.close()
    host.now += 1.0
    host.cool(worker)
    assert cooling(worker) == {"m": 5.0}


def test_a_locked_store_sets_no_model_aside_for_good(host):
    """003-R41"""
    worker = host.worker()
    host.cool(worker)
    host.now += 5.0
    holder = sqlite3.connect(host.folder / "cooling.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert all(request(worker).may_try("m") for _ in range(3))
    holder.close()


def test_a_removed_store_costs_what_was_in_it(host):
    """003-R41, 007-R14"""
    workers = [host.worker(), host.worker()]
    host.cool(workers[0])
    for path in host.folder.iterdir():
        path.unlink()
    for worker in workers:
        worker.records.keep()
        assert cooling(worker) == {}
    host.cool(workers[0])
    assert cooling(workers[1]) == cooling(host.worker()) == {"m": 5.0}
    end(host.worker(), 200)
    assert cooling(workers[0]) == cooling(workers[1]) == {}


def test_without_a_directory_each_process_cools_by_itself(host):
    """003-R41"""
    worker = Cooling(HostRecords(None, lambda: host.now), CoolingSettings(), 2.0,
                     lambda: host.now, lambda: 0.0)
    host.cool(worker)
    assert cooling(worker) == {"m": 5.0}
    worker.records.close()


def test_what_is_old_is_forgotten(host):
    """003-R39"""
    one, two = host.worker(), host.worker()
    end(one, HANGS)
    host.cool(one, "other")
    host.now += 600.0
    one.records.keep()
    assert set(two.records.all()) == {"other"}
    host.now += 5.0
    two.records.keep()
    assert not one.records.all()


def test_much_that_is_old_is_forgotten_at_once_and_a_store_in_trouble_is_waited_for_once(
        host, monkeypatch):
    """003-R39, 003-R41"""
    worker = host.worker()
    for number in range(50):
        end(worker, HANGS, f"m{number}")
    calls, write = [], worker.records._database.write
    monkeypatch.setattr(worker.records._database, "write",
                        lambda *given: calls.append(given) or write(*given))
    host.now += 600.0
    holder = sqlite3.connect(host.folder / "cooling.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    worker.records.keep()
    worker.records.keep()
    end(worker, HANGS)
    assert len(calls) == 1 and len(worker.records.all()) == 50
    holder.close()
    host.now += 1.0
    worker.records.keep()
    worker.records.keep()
    assert len(calls) == 2 and not worker.records.all()


def test_so_many_models_are_remembered_and_no_longer_names(host):
    """003-R39"""
    worker = host.worker()
    for number in range(520):
        host.now += 0.001
        end(worker, HANGS, f"m{number}")
    end(worker, HANGS, "m" * 257)
    assert set(worker.records.all()) == {f"m{number}" for number in range(20, 520)}


@pytest.mark.parametrize("name", ["m:THINKING", "m:bogus", "m0:", "nobody's", "chutesai/AutoPilot"])
def test_only_what_the_models_feed_lists_exactly_is_remembered(host, name):
    """003-R44: whatever names clients make up, there is a record of none."""
    worker = host.worker()
    host.cool(worker, name)
    assert not worker.records.all() and not host.said()
    host.cool(worker, "m")
    assert set(worker.records.all()) == {"m"}


def test_while_there_is_no_models_feed_what_is_ranked_is_remembered(host):
    """003-R44"""
    views = Views(lambda: host.now, lambda view: None)
    worker = host.worker()
    host.cool(worker, "a-TEE", views.current)
    assert not worker.records.all()
    views.take_rows([UtilizationRow("a-TEE", 1), UtilizationRow("b", 1)])
    for name in ("a-TEE", "b", "a-TEE:x"):
        host.cool(worker, name, views.current)
    assert cooling(worker) == {"a-TEE": 5.0}


def test_a_model_that_leaves_the_feed_can_still_end_what_is_remembered_of_it(host):
    """003-R44, 003-R38"""
    worker, without = host.worker(), listing("other")
    host.cool(worker)
    host.now += 5.0
    probe = request(worker, view=without)
    assert probe.may_try("m")
    probe.attempted(ended(200))
    assert cooling(worker) == {} and request(worker).may_try("m")
    assert host.said()[-1] == ("model cooling no more", "other")


def test_a_record_that_changes_is_not_forgotten_by_an_older_one(host):
    """003-R40"""
    worker = host.worker()
    assert worker.records.change("m", lambda record: record) == (HEALTHY, HEALTHY)
    worker.records.change("m", lambda record: record._replace(failures=2))
    assert worker.records.all()["m"] == Record(2)


def test_a_scrape_shows_what_the_host_remembers_and_not_each_model_of_the_feed(host):
    """003-R43: whichever worker is asked"""
    workers, view = [host.worker(), host.worker()], listing("a", "b", *map(str, range(20_000)))
    assert workers[0].shown(view) == {}
    end(workers[0], HANGS, "a", view)
    host.cool(workers[0], "b", view)
    assert [worker.shown(view) for worker in workers] == [{"a": 0, "b": 1}] * 2
    host.now += 5.0
    end(workers[1], 200, "b", view)
    assert [worker.shown(view) for worker in workers] == [{"a": 0, "b": 0}] * 2
    host.now += 600.0
    workers[0].records.keep()
    assert [worker.shown(view) for worker in workers] == [{}] * 2


def counted(model):
    """Return what cooldowns_total shows of a model; None if it has no series yet."""
    metrics.write_counts()
    [family] = metrics.cooldowns_total.collect()
    return {sample.labels["model"]: sample.value for sample in family.samples
            if sample.name.endswith("_total")}.get(model)


def test_the_count_of_coolings_is_shown_as_zero_from_a_models_first_failure_on(host):
    """003-R43: rate() does not see the first sample of a series."""
    worker, view = host.worker(), listing("shown early")
    end(worker, 200, "shown early", view)
    assert counted("shown early") is None
    for count in (0, 0, 1):
        end(worker, HANGS, "shown early", view)
        assert counted("shown early") == count


def test_each_cooling_is_counted_once(host):
    """003-R43"""
    one, two = host.worker(), host.worker()
    before = counted("counted") or 0
    for _ in range(3):
        end(one, HANGS, "counted")
        end(two, HANGS, "counted")
    assert counted("counted") - before == 1

"""What cooling costs a request: on a healthy day, beside models that cool, and on a failure.

A request looks at the conditions, asks before its attempt, and tells how that ended.
"""

import logging
import pathlib
import statistics
import tempfile
import time

from app.cooling.records import HostRecords
from app.cooling.session import Cooling
from app.routing.catalogue import Catalogue, Model
from app.routing.cooling import CoolingSettings
from app.routing.outcomes import Attempt, Blame, Failure
from app.routing.view import View
from tests.bench.refresh import SHARED_MEMORY
from tests.bench.report import Findings, Table, Target

ROUNDS, STEPS = 60, 200
MOST_US = 3.0
MODEL, OTHERS = "some/Model-TEE", 30
GOOD = Attempt(MODEL, None, Blame.NOBODY, 200, "", 10.0)
BAD = Attempt(MODEL, Failure.UNAVAILABLE, Blame.MODEL, None, "", 10.0)


OTHER_MODELS = [f"other/Model-{number}" for number in range(OTHERS)]
VIEW = View(Catalogue.of(map(Model, [MODEL, *OTHER_MODELS]), 0.0))


def request(host, *attempts):
    """Do what one request does."""
    watched = host.for_request(host.conditions(), VIEW, 10.0)
    for attempt in attempts:
        watched.may_try(MODEL)
        watched.attempted(attempt)
    watched.give_back()


def cost_us(host, *attempts):
    """Return the median cost of a request with these attempts, µs."""
    took = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(STEPS):
            request(host, *attempts)
        took.append((time.perf_counter() - started) / STEPS * 1e6)
    return statistics.median(took)


def measure():
    """Measure what a request pays for cooling."""
    logging.getLogger("app.cooling").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        records = HostRecords(pathlib.Path(folder), time.monotonic)
        host = Cooling(records, CoolingSettings(3600.0, 3600.0, 3), 120.0, time.monotonic)
        healthy, failed = cost_us(host, GOOD), cost_us(host, BAD, GOOD)
        for model in OTHER_MODELS:
            for _ in range(3):
                host.for_request(host.conditions(), VIEW, 10.0).attempted(Attempt(
                    model, Failure.UNAVAILABLE, Blame.MODEL, None, "", 0.0))
        beside = cost_us(host, GOOD)
        records.close()
    return Findings(
        [Target(f"cooling costs a request without a failure at most {MOST_US:.0f} µs",
                f"{healthy:.1f} µs", healthy <= MOST_US)],
        [Table("Cooling", ("a request", "median, µs"), [
            ["every model is healthy", f"{healthy:.1f}"],
            [f"{OTHERS} other models cool", f"{beside:.1f}"],
            ["a failure that is written, and the success that clears it", f"{failed:.1f}"]])])

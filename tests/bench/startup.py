"""From the start of gunicorn to the first `ready`, and what a worker holds when nothing happens."""

import statistics
import time

from tests.bench.processes import CORES, router, upstream
from tests.bench.report import Chart, Findings, Table, Target

ROUNDS, WORKERS, REST_S, MOST_MB = 5, (1, 2), 2, 55


def started_and_rested(backend, workers):
    """Start a router; return seconds to ready, and the workers' mean memory, MB: PSS and RSS."""
    since = time.monotonic()
    with router(backend, cores=set(CORES), WEB_CONCURRENCY=str(workers)) as ours:
        ready_s = time.monotonic() - since
        # By now every worker has its feeds, whichever answered.
        time.sleep(REST_S)
        return ready_s, *(statistics.mean(ours.memory_kb(field)[1:]) / 1024
                          for field in ("Pss", "Rss"))


def measure():
    """Measure 7, and memory at rest."""
    seen = {workers: [] for workers in WORKERS}
    with upstream() as backend:
        for _ in range(ROUNDS):
            for workers in WORKERS:
                seen[workers].append(started_and_rested(backend, workers))
    medians = {workers: [statistics.median(column) for column in zip(*many)]
               for workers, many in seen.items()}
    rows = [[workers, f"{ready_s:.2f}", f"{pss:.1f}", f"{rss:.1f}"]
            for workers, (ready_s, pss, rss) in medians.items()]
    most = max(rss for _, _, rss in medians.values())
    return Findings(
        [Target(f"at most {MOST_MB} MB a worker at rest",
                f"{max(pss for _, pss, _ in medians.values()):.1f} MB proportional, "
                f"{most:.1f} MB resident", most <= MOST_MB)],
        [Table("Start and rest", ("workers", "ready after, s", "MB a worker, proportional",
                                  "MB a worker, resident"), rows,
               "Ready means fed: `/readyz` has answered 200. The proportional set shares what "
               "several processes have in common; the resident set counts it for each.")],
        [Chart("Start to ready, s", {f"router, workers: {workers}": ready_s
                                     for workers, (ready_s, *_) in medians.items()}, 2)])

"""How long a control-plane refresh holds the event loop, and what it costs, as the feeds grow.

Both feeds are fetched, read, ranked and shared as in a worker. They differ each time: a refresh
that finds nothing new would be another measure.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from tests.bench.processes import SERVER_CORES, upstream
from tests.bench.report import Chart, Findings, Table, Target
from tests.bench.upstream import FEED_SIZES
from tests.support.router import ROOT

MOST_MS, MOST_TIMES = 5, 12
SHARED_MEMORY = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None


def rounds(port, times):
    """Return the (hold, processor time) of each round at so many times the real feeds, ms."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        metrics = pathlib.Path(folder, "metrics")
        metrics.mkdir()
        url = f"http://127.0.0.1:{port}/{times}"
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.refresh_inside"], cwd=ROOT, check=True,
            stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, SERVER_CORES),
            env={"PATH": os.environ["PATH"], "CHUTES_ROUTER_RUNTIME_DIRECTORY": folder,
                 "PROMETHEUS_MULTIPROC_DIR": str(metrics), "MODELS_URL": f"{url}/v1/models",
                 "UTILIZATION_URL": f"{url}/chutes/utilization", "MODELS_REFRESH_MS": "20",
                 "UTILIZATION_REFRESH_MS": "20"})
    return json.loads(done.stdout)


def measure():
    """Measure 5."""
    seen, rows = {}, []
    with upstream() as backend:
        for times in FEED_SIZES:
            holds, costs = zip(*rounds(backend.port, times))
            seen[times] = statistics.median(holds), statistics.median(costs), max(holds)
            rows.append([f"{times}x ({538 * times:,} rows)", f"{seen[times][0]:.1f}",
                         f"{max(holds):.1f}", f"{seen[times][1]:.1f}",
                         f"{seen[times][1] / seen[1][1]:.1f}"])
    head = ("feeds", "event loop held, ms", "worst round", "processor, ms", "of 1x")
    note = "The longest time that nothing else could run, and the cost of one refresh: medians."
    (held, _, worst), times = seen[1], seen[10][1] / seen[1][1]
    return Findings(
        [Target(f"refresh of the real feed: event loop held at most {MOST_MS} ms",
                f"{held:.1f} ms at the median, {worst:.1f} in the worst round",
                held <= MOST_MS),
         Target(f"10 times the feed costs at most {MOST_TIMES} times", f"{times:.1f} times",
                times <= MOST_TIMES)],
        [Table("Control-plane refresh", head, rows, note)],
        [Chart("Event loop held by a refresh, ms",
               {f"router, {times}x the feeds": seen[times][0] for times in FEED_SIZES}, 1)])

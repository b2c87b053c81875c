"""Run every measure and put what they found into this directory's README: `make bench`."""

import importlib
import sys
import time

from tests.bench.report import Findings, publish
from tests.bench.wrk import require

MEASURES = ("throughput", "latency", "paced", "open_streams", "leaving", "failover", "refresh",
            "sticky", "sticky_requests", "cooling", "startup", "first_moments")


def main():
    """Run the measures in a row; with names as arguments only those, and publish nothing."""
    require("wrk", "redis-server")
    findings = Findings()
    for name in sys.argv[1:] or MEASURES:
        started = time.monotonic()
        findings.add(importlib.import_module(f"tests.bench.{name}").measure())
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if sys.argv[1:]:
        print(findings.markdown(""))
    else:
        publish("bench", findings)


if __name__ == "__main__":
    main()

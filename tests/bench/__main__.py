"""Run every measure and put what they found into this directory's README: `make bench`."""

import importlib
import sys
import time
import traceback

from tests.bench.report import Findings, publish
from tests.bench.wrk import require

MEASURES = ("throughput", "latency", "paced", "open_streams", "leaving", "failover", "refresh",
            "sticky", "sticky_requests", "cooling", "startup", "first_moments")


def main():
    """Run the measures in a row; with names as arguments only those, and publish nothing.

    One that fails costs its own figures, and not those of the twenty minutes before.
    """
    require("wrk", "redis-server")
    findings, failed = Findings(), []
    for name in sys.argv[1:] or MEASURES:
        started = time.monotonic()
        try:
            findings.add(importlib.import_module(f"tests.bench.{name}").measure())
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if sys.argv[1:]:
        print(findings.markdown(""))
    else:
        publish("bench", findings)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

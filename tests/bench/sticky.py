"""A million client keys through a bound of ten thousand: size held, time flat. By `make bench`.

Each step is what a request costs: a read and a write, in the embedded store on shared memory.
"""

import pathlib
import statistics
import tempfile
import time

from app.sticky.embedded import EmbeddedStickyStore

KEYS, BOUND, SAMPLE = 1_000_000, 10_000, 1_000


def main():
    """Print the median and 99th percentile of a step as the keys pass."""
    shared_memory = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        store = EmbeddedStickyStore(pathlib.Path(folder, "sticky.sqlite"), 1800, BOUND,
                                    time.monotonic)
        print(f"{'keys so far':>12} {'entries':>8} {'median us':>10} {'99 % us':>8}")
        took = []
        for number in range(KEYS):
            key = f"{number:032x}"
            started = time.perf_counter()
            store.put(key, "some/Model-TEE", store.get(key))
            took.append(time.perf_counter() - started)
            if number + 1 in (10, 10_000, 100_000, 500_000, KEYS):
                recent = took[-SAMPLE:]
                high = statistics.quantiles(recent, n=100)[98]
                print(f"{number + 1:12,} {len(store):8,} {statistics.median(recent) * 1e6:10.1f} "
                      f"{high * 1e6:8.1f}")
        store.close()


if __name__ == "__main__":
    main()

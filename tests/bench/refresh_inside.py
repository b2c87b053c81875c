"""The inside of a worker that does nothing but refresh its feeds; see tests.bench.refresh.

Run as a process of its own, configured by the environment as a worker is. Prints for each round
how long the event loop was held at most, and the processor time of the round, both in ms.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

from app.config import load_config  # noqa: E402
from app.dialing.dialer import Dialer  # noqa: E402
from app.dialing.names import Names  # noqa: E402
from app.eventloop import pause  # noqa: E402
from app.factory import build_feeds, build_history  # noqa: E402
from app.routing.view import Views  # noqa: E402
from app.upstream.tls import trusting  # noqa: E402

ROUNDS = 21


def refresh(feeds):
    """Bring both feeds up to date, as the greenlets of a worker do."""
    for feed in feeds:
        assert feed.refresh()
        # Far more than the interval: the next refresh is one.
        time.sleep(0.025)


def longest_hold_ms(feeds):
    """Refresh with a greenlet beside that wants to run all the time; return its longest wait."""
    worker, longest, seen = gevent.spawn(refresh, feeds), 0.0, time.perf_counter()
    while not worker.dead:
        # By a timer, as sockets are: it comes when the event loop itself has turned.
        gevent.sleep(1e-9)
        now = time.perf_counter()
        longest, seen = max(longest, now - seen), now
    worker.get()
    return longest * 1000


def processor_ms(feeds):
    """Return the processor time of a refresh with nothing beside it."""
    before = time.process_time()
    refresh(feeds)
    return (time.process_time() - before) * 1000


def main():
    """Do it so many times; the first is not counted."""
    clock = time.monotonic
    views = Views(clock, lambda view: None, pause=pause)
    feeds = build_feeds(load_config(), trusting(""), Dialer(Names(clock)), views,
                        build_history(clock), clock)
    refresh(feeds)
    print(json.dumps([(longest_hold_ms(feeds), processor_ms(feeds)) for _ in range(ROUNDS)]))


if __name__ == "__main__":
    main()

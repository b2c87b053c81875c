"""What a whole request by the alias costs as the live sticky entries grow, in either store.

Each case has a router of its own whose store is filled before: each request is one of so many
clients, drawn at random, and finds its choice.
"""

import contextlib
import os
import pathlib
import re
import time

from app.routing.client_key import ClientKeys
from app.sticky.sqlite import SqliteStickyStore
from app.sticky.store import StickyChoice
from tests.bench.processes import router, upstream
from tests.bench.report import Chart, Findings, Table, Target
from tests.bench.sticky import MOST_DEARER, SIZES, TTL_S, fill_redis
from tests.bench.wrk import Load, interleaved, whole_answer
from tests.support.redis_server import RedisServer

ROUNDS = 5
ALIAS, SECRET = "chutesai/AutoPilot", "of-the-benchmark"
KINDS = ("embedded", "with Redis")


def client_keys(count):
    """Return the client keys of the tokens sk-0 and so on."""
    keys = ClientKeys(SECRET, None)
    return [keys.derive({"HTTP_AUTHORIZATION": f"Bearer sk-{n}"}) for n in range(count)]


def selected(server):
    """Ask the alias and return the model it went to: a candidate for as long as the bench runs."""
    head = whole_answer(Load(server, ALIAS)).partition(b"\r\n\r\n")[0].decode()
    return re.search(r"(?mi)^x-chutes-autopilot-selected: (\S+)", head)[1]


def fill_embedded(server, clients, model):
    """Put a choice for each client into a running router's own store."""
    held = pathlib.Path(f"/proc/{server.process.pid}/fd")
    [lock] = [path for path in map(os.readlink, held.iterdir()) if path.endswith("/lock")]
    store = SqliteStickyStore(pathlib.Path(lock).with_name("sticky.sqlite"), TTL_S,
                              2 * SIZES[-1], time.monotonic)
    for client in clients:
        store.put(client, model, StickyChoice())
    assert len(store) >= len(clients)
    store.close()


@contextlib.contextmanager
def filled_routers(backend):
    """Yield (kind, size) -> a router with so many live entries."""
    settings = {"STICKY_MAX_ENTRIES": str(2 * SIZES[-1]), "STICKY_HASH_SECRET": SECRET,
                "STICKY_TTL_SECS": str(TTL_S)}
    with contextlib.ExitStack() as stack:
        redis, servers = stack.enter_context(RedisServer()), {}
        for database, size in enumerate(SIZES):
            clients = client_keys(size)
            own = stack.enter_context(router(backend, **settings))
            shared = stack.enter_context(router(
                backend, **settings, STICKY_URL=redis.url.removesuffix("0") + str(database)))
            model = selected(shared)
            fill_redis(redis, database, clients, model)
            for kind, server in zip(KINDS, (own, shared)):
                fill_embedded(server, clients, model)
                servers[kind, size] = server
        yield servers


def measure():
    """Measure 6, as a client sees it."""
    with upstream() as backend, filled_routers(backend) as servers:
        rates = interleaved({case: Load(server, ALIAS, clients=case[1])
                             for case, server in servers.items()}, ROUNDS)
    times = {(kind, size): rate.cost_s / rates[kind, SIZES[0]].cost_s
             for (kind, size), rate in rates.items()}
    rows = [[f"{kind}, {size:,} entries", f"{rate.answers:,.0f}", f"{rate.cost_s * 1e6:,.0f}",
             f"{times[kind, size]:.2f}"] for (kind, size), rate in rates.items()]
    dearer = {kind: times[kind, SIZES[-1]] - 1 for kind in KINDS}
    return Findings(
        [Target("sticky store at 1,000,000 entries within 10 % of its cost at 10: a request "
                "as a whole", ", ".join(f"{kind} {more:+.0%}" for kind, more in dearer.items()),
                max(dearer.values()) <= MOST_DEARER)],
        [Table("Requests by sticky entries", (
            "one worker, 32 connections", "answers/s", "processor µs/answer",
            "processor, of that at 10"), rows,
            "Each request is one of so many clients, drawn at random, and finds its choice. The "
            "processor time is the router's own.")],
        [Chart("Requests a second by sticky entries", {
            f"router, {kind}, {size:,}": rate.answers for (kind, size), rate in rates.items()})])

"""What a request costs in the sticky stores alone as the live entries grow.

A request reads and writes once, for a client drawn at random. Two in three stay with the model
the client has, the third moves it to another; the three are timed together.
"""

import collections
import contextlib
import pathlib
import random
import socket
import statistics
import tempfile
import time

from app.dialing.dialer import Dialer
from app.dialing.names import Names
from app.eventloop import sleep
from app.sticky.redis import PREFIX, RedisStickyStore
from app.sticky.sqlite import SqliteStickyStore
from app.sticky.store import StickyChoice
from app.upstream.tls import trusting
from tests.bench.refresh import SHARED_MEMORY
from tests.bench.report import Chart, Findings, Table, Target
from tests.support.redis_server import RedisServer
from tests.support.router import DEADLINE_S

SIZES = (10, 10_000, 1_000_000)
ACTIVE = SIZES[0]
ROUNDS, STEPS, TTL_S = 60, 40, 1_800
MODELS = ("some/Model-TEE", "other/Model-TEE")
MOST_DEARER = 0.10


def key(number):
    """Return a client key, as spread as a digest is."""
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


def fill_redis(server, database, clients, model):
    """Put a choice for each client into Redis as the store does, without a round trip for each."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as sock:
        reader, prefix = sock.makefile("rb"), PREFIX.encode()
        sock.sendall(b"SELECT %d\r\n" % database)
        assert reader.readline() == b"+OK\r\n"
        for start in range(0, len(clients), 10_000):
            some = clients[start:start + 10_000]
            sock.sendall(b"".join(b"SET %s%s %s EX %d\r\n" % (
                prefix, client.encode(), model.encode(), TTL_S) for client in some))
            assert all(reader.readline() == b"+OK\r\n" for _ in some)


def wait_until_connected(store):
    """Wait until a store has a connection to Redis, which it opens beside its requests."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not store.get(key(0)).renewed:
        assert time.monotonic() < give_up_at
        store.put(key(0), MODELS[0], StickyChoice())
        sleep(0.01)


@contextlib.contextmanager
def stores():
    """Yield (kind, size) -> a store with so many live entries."""
    filled = {}
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder, RedisServer() as server:
        for database, size in enumerate(SIZES):
            embedded = SqliteStickyStore(pathlib.Path(folder, f"{size}.sqlite"), TTL_S,
                                         2 * SIZES[-1], time.monotonic)
            distributed = RedisStickyStore(
                server.url.removesuffix("0") + str(database), trusting(""), Dialer(Names()), TTL_S,
                embedded, time.monotonic)
            wait_until_connected(distributed)
            clients = [key(number) for number in range(size)]
            for client in clients:
                embedded.put(client, MODELS[0], StickyChoice())
            fill_redis(server, database, clients, MODELS[0])
            filled["embedded", size] = embedded
            filled["with Redis", size] = distributed
        yield filled
        for store in filled.values():
            store.close()


def request_us(store, clients):
    """Do what requests of these clients do, the last moving; return how long one took, µs."""
    started = time.perf_counter()
    for client in clients:
        choice = store.get(client)
        assert choice.model in MODELS
        moved = MODELS[choice.model == MODELS[0]]
        store.put(client, moved if client is clients[-1] else choice.model, choice)
    return (time.perf_counter() - started) / len(clients) * 1e6


def measured(filled):
    """Return (kind, size, drawn from) -> µs a request of every step, rounds interleaved."""
    draw, took = random.Random(3), collections.defaultdict(list)
    for _ in range(ROUNDS):
        for (kind, size), store in filled.items():
            for drawn_from in sorted({ACTIVE, size}):
                took[kind, size, drawn_from] += [
                    request_us(store, [key(draw.randrange(drawn_from)) for _ in range(3)])
                    for _ in range(STEPS)]
    return took


def dearer(seen, drawn_from):
    """Return what the largest stores cost more than the smallest, and whether that will do."""
    more = {kind: seen[kind, SIZES[-1], drawn_from] / seen[kind, SIZES[0], ACTIVE] - 1
            for kind in ("embedded", "with Redis")}
    return (", ".join(f"{kind} {part:+.0%}" for kind, part in more.items()),
            max(more.values()) <= MOST_DEARER)


def measure():
    """Measure 6, of the stores by themselves."""
    with stores() as filled:
        took = measured(filled)
    seen = {case: statistics.median(many) for case, many in took.items()}
    rows = [[f"{kind}, {size:,} entries, clients drawn from {drawn_from:,}",
             f"{seen[kind, size, drawn_from]:.1f}",
             f"{statistics.quantiles(many, n=100)[98]:.1f}",
             f"{seen[kind, size, drawn_from] / seen[kind, SIZES[0], ACTIVE]:.2f}"]
            for (kind, size, drawn_from), many in took.items()]
    asked = f"sticky store at {SIZES[-1]:,} entries within 10 % of its cost at {SIZES[0]}"
    return Findings(
        [Target(f"{asked}: by itself, ten clients at work", *dearer(seen, ACTIVE)),
         Target(f"{asked}: by itself, all of them at work", *dearer(seen, SIZES[-1]))],
        [Table("Sticky store", ("a request's read and write", "median, µs", "99 %, µs",
                                "times that at 10"), rows,
               "One request in three moves its client to another model. What costs is not the "
               "number of entries but that of clients at work: ten clients' uses are written "
               "once in two seconds, and their pages are in the processor's cache; each of a "
               "million comes for the first time in long, is written, and has its pages in "
               "memory only. A tree has no way around that.")],
        [Chart("Sticky store, µs a request", {
            f"router, {kind}, {size:,}, of {drawn_from:,}": seen[kind, size, drawn_from]
            for kind, size, drawn_from in seen})])

"""Twice what the router takes, through nginx, with its workers replaced in the middle.

The load does not wait for answers: requests arrive at a fixed rate, each a stream of two seconds.
Two workers take so many at a time, which makes the rate they can serve; twice that is sent. Every
request must end in a complete stream or in a whole 503 that says when to come again.

Run by `make overload`: two minutes. It fails if one request ends otherwise.
"""

import asyncio
import dataclasses
import json
import signal
import statistics
import time

from tests.bench.soak import read_body
from tests.support.feeds import models_feed, utilization_feed
from tests.support.nginx import Nginx
from tests.support.router import Router, free_port
from tests.support.upstream import Upstream

SECONDS = 120
WORKERS, IN_FLIGHT = 2, 150
# Connections beyond that: fewer than nginx would keep open.
SPARE = 20
EVENTS, APART_S = 20, 0.1
# Requests a second that end at that rate when every place is taken.
CAPACITY = WORKERS * IN_FLIGHT / (EVENTS * APART_S)
PROBE_EVERY_S = 0.05
PATIENCE_S = 30
EVENT = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word %02d\"}}]}\n\n"
WHOLE = b"".join(EVENT % number for number in range(EVENTS)) + b"data: [DONE]\n\n"
MODEL = "northwind/Cedar-1B"
ASK = json.dumps({"model": MODEL, "stream": True, "messages": []}).encode()
REQUEST = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nConnection: close\r\n"
           b"Content-Length: %d\r\n\r\n%s" % (len(ASK), ASK))
PROBE = b"GET /healthz HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n"


@dataclasses.dataclass
class Tally:
    """How requests ended, and how long probes and refusals took, in seconds."""

    complete: int = 0
    refused: int = 0
    cut: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    probes: list[float] = dataclasses.field(default_factory=list)
    refusals: list[float] = dataclasses.field(default_factory=list)

    status: int | None = None

    @property
    def bad(self):
        lost = sum(time_s == float("inf") for time_s in self.probes)
        return len(self.wrong) + self.cut + lost + (self.status != 0)


async def serve(reader, writer):
    """Answer requests with streams at a steady pace; the first read of one brings all of it."""
    try:
        while await reader.readuntil(b"\r\n\r\n") and await reader.readexactly(len(ASK)):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n")
            for number in range(EVENTS):
                event = EVENT % number
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await asyncio.sleep(APART_S)
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        pass
    finally:
        writer.close()


async def exchange(port, request):
    """Send a request on a connection of its own; return head, body and how that ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        return head, *await read_body(reader, head, None)
    finally:
        writer.close()


async def one_request(port, tally):
    """Judge how one request ends."""
    started = time.monotonic()
    try:
        head, body, ended = await asyncio.wait_for(exchange(port, REQUEST), PATIENCE_S)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        tally.wrong.append(type(error).__name__)
        return
    if head.startswith(b"HTTP/1.1 200 ") and ended == "complete" and body == WHOLE:
        tally.complete += 1
    elif head.startswith(b"HTTP/1.1 200 "):
        tally.cut += 1
    elif (head.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in head
          and ended == "complete" and json.loads(body)["error"]["code"] == "overloaded"):
        tally.refused += 1
        tally.refusals.append(time.monotonic() - started)
    else:
        tally.wrong.append(f"{head[:30]!r} {body[:100]!r} {ended}")


async def one_probe(port, tally):
    """Take the time of one look at /healthz; one that fails took for ever."""
    started = time.monotonic()
    try:
        head, body, _ = await asyncio.wait_for(exchange(port, PROBE), PATIENCE_S)
        good = head.startswith(b"HTTP/1.1 200 ") and body == b"ok"
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        good = False
    tally.probes.append(time.monotonic() - started if good else float("inf"))


async def at_intervals(seconds, apart_s, start):
    """Start something at a fixed rate, whatever has become of the ones before; wait for all."""
    begun, tasks = time.monotonic(), []
    while (due := begun + len(tasks) * apart_s) < begun + seconds:
        await asyncio.sleep(due - time.monotonic())
        tasks.append(asyncio.create_task(start()))
    await asyncio.gather(*tasks)


async def reload_in_the_middle(router, seconds):
    """Have the master replace its workers; wait until the old ones have gone."""
    await asyncio.sleep(seconds / 2)
    router.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(
        router.wait_for_lines, lambda line: line["message"].startswith("Worker exiting"), WORKERS)


async def overload(seconds, report=print):
    """Run the load for so long. Returns Tally."""
    tally = Tally()
    backend = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    port, health = backend.sockets[0].getsockname()[1], free_port()
    feeds = Upstream(models=models_feed([MODEL]), rows=utilization_feed(10, 5))
    with feeds, Router(
            f"http://127.0.0.1:{port}", MODELS_URL=f"{feeds.url}/v1/models",
            UTILIZATION_URL=f"{feeds.url}/chutes/utilization", WEB_CONCURRENCY=str(WORKERS),
            MAX_INFLIGHT_REQUESTS=str(IN_FLIGHT), WORKER_CONNECTIONS=str(IN_FLIGHT + SPARE),
            GRACEFUL_TIMEOUT_SECS="30", LOG_LEVEL="info",
            HEALTH_LISTEN_ADDR=f"127.0.0.1:{health}") as router:
        with Nginx(f"127.0.0.1:{router.port}") as nginx:
            await asyncio.gather(
                at_intervals(seconds, 1 / (2 * CAPACITY), lambda: one_request(nginx.port, tally)),
                at_intervals(seconds, PROBE_EVERY_S, lambda: one_probe(nginx.port, tally)),
                reload_in_the_middle(router, seconds))
        metrics = router.metrics()
        tally.status = await asyncio.to_thread(router.stop)
    backend.close()
    for line in tally.wrong[:5]:
        report(f"wrong: {line}")
    cuts = sum(count for key, count in metrics.items() if key[0] == "cuts_total")
    report(f"{seconds} s at {2 * CAPACITY:.0f} requests/s, capacity {CAPACITY:.0f}/s: "
           f"complete {tally.complete}, refused {tally.refused}, cut {tally.cut}, "
           f"wrong {len(tally.wrong)}; the router's own count of cuts {cuts:.0f}, "
           f"of refusals {metrics['overloaded_total',]:.0f}; exit status {tally.status}")
    for name, times in (("/healthz", tally.probes), ("refusals", tally.refusals)):
        parts = [seconds * 1000 for seconds in statistics.quantiles(times, n=100)]
        report(f"{name}: median {parts[49]:.1f} ms, 99th percentile {parts[98]:.1f} ms, "
               f"longest {max(times) * 1000:.1f} ms, of {len(times)}")
    tally.cut += int(cuts)
    return tally


def main():
    tally = asyncio.run(overload(SECONDS))
    raise SystemExit("FAILED" if tally.bad or not tally.refused else None)


if __name__ == "__main__":
    main()

"""Thousands of streams, two in three aborted by one side or the other, and slow clients beside.

`make soak` runs it all and prints the figures; a short run is part of the tests. Every stream
carries bytes that only it can have, so that a lost or a foreign byte is seen at once.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import shutil
import socket
import struct
import subprocess
import time

from tests.bench import network
from tests.bench.leaned_on import lean
from tests.bench.soak_memory import filled
from tests.support.feeds import models_feed, public_names, utilization_feed
from tests.support.router import Router
from tests.wire.conftest import LISTED

CONCURRENCY = 64
SLOW_READERS = 40
# How long each attack lasts, and the silent clients in the short run of the tests.
ATTACK_S, LEAN_S = 20, 3
# Load before and after each fault of the network, and how long its resolver is silent.
CALM_S, SILENT_S = 8, 10
FILLED_S = 5
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SETTINGS = {
    "UPSTREAM_HEADER_TIMEOUT_MS": "5000", "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS": "5000",
    "UPSTREAM_IDLE_TIMEOUT_MS": "5000", "CLIENT_BODY_TIMEOUT_MS": "5000",
    "CLIENT_WRITE_TIMEOUT_MS": "20000", "MODELS_REFRESH_MS": "3600000",
    "UTILIZATION_REFRESH_MS": "3600000", "LOG_LEVEL": "debug"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to happen to one stream; decided by its number alone.

    framing      chunked, length or close
    chunks       how many there are
    breaker      "", "client" or "upstream"
    after        how many chunks pass before the break; -1: before the headers
    reset        whether the break is a reset rather than an orderly end
    """

    number: int
    framing: str
    chunks: int
    breaker: str
    after: int
    reset: bool

    @classmethod
    def of(cls, number):
        draw = random.Random(number)
        chunks = draw.randint(1, 40)
        return cls(number, draw.choice(("chunked", "length", "close")), chunks,
                   ("", "client", "upstream")[number % 3], draw.randint(-1, chunks - 1),
                   draw.random() < 0.5)

    def chunk(self, index):
        """Return the bytes of one chunk: only this stream has them."""
        return b"stream %d chunk %d %s\n" % (self.number, index, b"." * (index * 7 % 300))

    @property
    def body(self):
        return b"".join(self.chunk(index) for index in range(self.chunks))

    @property
    def looks_complete(self):
        """Say whether a break by the upstream cannot be told from the end of the body."""
        return (self.framing == "close" and self.breaker == "upstream" and not self.reset
                and self.after >= 0)


class Backend:
    """The scripted backend of the soak, in the harness's own event loop."""

    def __init__(self):
        self.writers = set()
        self.feeds = {
            b"/v1/models": models_feed([LISTED, *public_names()]),
            b"/chutes/utilization": utilization_feed()}

    def close_all(self):
        """Close every connection, so that the router's pools have nothing to keep."""
        for writer in list(self.writers):
            writer.close()

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        target = head.split(b" ", 2)[1]
        if target in self.feeds:
            body = json.dumps(self.feeds[target]).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return True
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        _, _, number = body["model"].rpartition(":soak")
        return await self._stream(Plan.of(int(number)), writer)

    async def _stream(self, plan, writer):
        breaks_at = plan.after if plan.breaker == "upstream" else None
        if breaks_at == -1:
            return self._break(plan, writer)
        framing = {"chunked": b"Transfer-Encoding: chunked\r\n", "close": b"",
                   "length": b"Content-Length: %d\r\n" % len(plan.body)}[plan.framing]
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
        for index in range(plan.chunks):
            if index == breaks_at:
                return self._break(plan, writer)
            data = plan.chunk(index)
            chunked = plan.framing == "chunked"
            writer.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            await writer.drain()
            if index % 4 == 0:
                await asyncio.sleep(0.001)
        if plan.framing == "chunked":
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return plan.framing != "close"

    @staticmethod
    def _break(plan, writer):
        if plan.reset:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        return False


@dataclasses.dataclass
class Tally:
    """What the clients saw."""

    complete: int = 0
    cut: int = 0
    errors: int = 0
    left: int = 0
    lost_or_foreign: int = 0
    wrong_end: int = 0
    good_beside: int = 0
    bad_beside: int = 0
    left_behind: int = 0
    late_probes: int = 0

    @property
    def bad(self):
        """Return how many promises were broken."""
        return (self.lost_or_foreign + self.wrong_end + self.bad_beside + self.left_behind
                + self.late_probes)

    def judge(self, plan, status, body, ended):
        """Compare what one client saw with what its plan allows."""
        if status == 502:
            self.errors += 1
            self.wrong_end += plan.breaker != "upstream"
            return
        self.lost_or_foreign += not plan.body.startswith(body)
        if ended == "left":
            self.left += 1
        elif ended == "complete":
            self.complete += 1
            whole = body == plan.body
            self.lost_or_foreign += not whole and not plan.looks_complete
            self.wrong_end += plan.breaker == "upstream" and not plan.looks_complete and not whole
        else:
            self.cut += 1
            self.wrong_end += plan.breaker != "upstream"


async def stream(port, plan, tally):
    """Be the client of one stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    leaves_at = plan.after if plan.breaker == "client" else None
    try:
        body = json.dumps({"model": f"{LISTED}:soak{plan.number}", "stream": True}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        if leaves_at == -1:
            await asyncio.sleep(random.random() * 0.01)
            tally.judge(plan, 200, b"", "left")
            return
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        enough = None if leaves_at is None else leaves_at * 20
        received, ended = await read_body(reader, head, enough)
        tally.judge(plan, status, received, ended)
    finally:
        if plan.reset and plan.breaker == "client":
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.close()


async def read_body(reader, head, enough):
    """Read a body; return it and how it ended: complete, cut, or left after enough bytes."""
    body, chunked = b"", b"chunked" in head
    _, _, length = head.partition(b"Content-Length: ")
    try:
        while enough is None or len(body) <= enough:
            if not chunked:
                left = int(length.split(b"\r\n")[0]) - len(body)
                if not left:
                    return body, "complete"
                piece = await reader.read(left)
            else:
                size = int(await reader.readuntil(b"\r\n"), 16)
                piece = (await reader.readexactly(size + 2))[:-2]
                if not size:
                    return body, "complete"
            if not piece:
                return body, "cut"
            body += piece
        return body, "left"
    except (asyncio.IncompleteReadError, ConnectionResetError) as error:
        return body + getattr(error, "partial", b""), "cut"


async def slow_reader(port, stop):
    """Read an answer a little at a time until told to stop."""
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=256)
        body = json.dumps({"model": f"{LISTED}:soak0"}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        try:
            while await reader.read(64) and not stop.is_set():
                await asyncio.sleep(0.05)
        except ConnectionResetError:
            pass
        writer.close()


async def good_traffic(port, tally, until):
    """Send complete streams one after the other until a point in time."""
    number = 0
    while time.monotonic() < until:
        number += 3
        plan, seen = Plan.of(number), Tally()
        try:
            await asyncio.wait_for(stream(port, plan, seen), 10)
        except Exception:
            seen.errors += 1
        good = seen.complete == 1 and not seen.lost_or_foreign
        tally.good_beside += good
        tally.bad_beside += not good


async def attacked(port, tally, mode, seconds):
    """Run slowhttptest in one mode with good traffic beside it."""
    attack = await asyncio.create_subprocess_exec(
        "slowhttptest", mode, "-c", "300", "-r", "150", "-i", "2", "-l", str(seconds), "-p", "3",
        "-t", "POST", "-u", f"http://127.0.0.1:{port}/v1/chat/completions",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + seconds
        await asyncio.gather(*(good_traffic(port, tally, until) for _ in range(4)))
    finally:
        if attack.returncode is None:
            attack.terminate()
        await attack.wait()


def footprint(router):
    """Return descriptors, greenlets and resident bytes of all workers together."""
    reports = router.probe()
    return [sum(report[key] for report in reports)
            for key in ("descriptors", "greenlets", "resident")]


async def at_rest(router):
    """Wait until the workers have opened what they serve with; return the footprint.

    They have their feeds a moment before that.
    """
    seen = []
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        now = await asyncio.to_thread(footprint, router)
        seen.append(now[0])
        await asyncio.sleep(0.1)
    return now


async def settled(router, baseline):
    """Wait, within bounds, until descriptors and greenlets are back; return the footprint."""
    for _ in range(100):
        now = await asyncio.to_thread(footprint, router)
        if now[0] <= baseline[0] and now[1] <= baseline[1]:
            break
        await asyncio.sleep(0.1)
    return now


async def run_streams(router, numbers, tally):
    """Run streams by number, so many at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(number):
        async with gate:
            await asyncio.wait_for(stream(router.port, Plan.of(number), tally), 30)
    await asyncio.gather(*map(one, numbers))


async def soak(streams, attack_s, report=print):
    """Run the soak against a router with two workers; return the tally.

    streams   how many
    attack_s  how long each mode of slowhttptest runs; 0: none of them
    report    takes lines of text
    """
    backend = Backend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, backlog=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    router = Router(url, WEB_CONCURRENCY="2", **SETTINGS)
    try:
        await asyncio.to_thread(router.__enter__)
        await asyncio.to_thread(router.wait_until_fed)
        tally = await _soak(router, backend, streams, attack_s, report)
        await asyncio.to_thread(router.stop)
        before, lost = tally.good_beside, tally.bad_beside
        tally.late_probes = await lean(
            url, lambda port, until: good_traffic(port, tally, until), attack_s or LEAN_S, report)
        report(f"{tally.good_beside - before} good streams beside them, "
               f"{tally.bad_beside - lost} lost")
        return tally
    finally:
        await asyncio.to_thread(router.stop)
        server.close()


async def _soak(router, backend, streams, attack_s, report):
    tally, stop = Tally(), asyncio.Event()
    baseline = await at_rest(router)
    await run_streams(router, range(0, 3 * CONCURRENCY * 4, 3), Tally())
    slow = [asyncio.create_task(slow_reader(router.port, stop)) for _ in range(SLOW_READERS)]
    resident, started = [(await asyncio.to_thread(footprint, router))[2]], time.monotonic()
    for start in range(0, streams, 1000):
        await run_streams(router, range(start, min(start + 1000, streams)), tally)
        resident.append((await asyncio.to_thread(footprint, router))[2])
    took = time.monotonic() - started
    stop.set()
    await asyncio.gather(*slow)
    for mode in ("-H", "-B", "-X") if attack_s else ():
        before = tally.good_beside
        await attacked(router.port, tally, mode, attack_s)
        report(f"slowhttptest {mode}: {tally.good_beside - before} good streams beside it")
    backend.close_all()
    after = await settled(router, baseline)
    metrics = await asyncio.to_thread(router.metrics)
    report(f"{streams} streams in {took:.0f} s: {tally}")
    report(f"lost or foreign bytes in {tally.lost_or_foreign} streams; "
           f"{tally.wrong_end} streams ended otherwise than planned")
    report(f"descriptors {baseline[0]} -> {after[0]}, greenlets {baseline[1]} -> {after[1]}")
    # Of the second half: the first fills pools, caches and the allocator's arenas.
    half = len(resident) // 2
    slope = (resident[-1] - resident[half]) / max(1, len(resident) - 1 - half) / 1024
    report(f"resident KiB after each 1,000: {[size // 1024 for size in resident]}; "
           f"slope {slope:.0f} KiB per 1,000 streams, both workers")
    report(f"requests_active {metrics['requests_active',]:.0f}")
    tally.left_behind = (after[0] > baseline[0]) + (after[1] > baseline[1]) + (
        metrics["requests_active",] != 0)
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=5000)
    arguments = parser.parse_args()
    if shutil.which("slowhttptest") is None:
        parser.exit(1, "slowhttptest is missing: apt-get install slowhttptest\n")
    bad = asyncio.run(soak(arguments.streams, ATTACK_S)).bad
    bad += network.run(CALM_S, SILENT_S) + filled(FILLED_S)
    parser.exit(1 if bad else 0, "FAILED\n" if bad else "passed\n")


if __name__ == "__main__":
    main()

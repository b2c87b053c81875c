"""More clients that send one byte and wait than a worker takes connections; each comes again.

A phase of `make soak`. Good traffic runs beside them, and a probe goes to the health address twenty
times a second.
"""

import asyncio
import contextlib
import time

from tests.support.router import Router, free_port

CONNECTIONS, SILENT = 60, 75
PROBE_EVERY_S, PROBE_LIMIT_S = 0.05, 0.25
PROBE = b"GET /healthz HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n"
# No deadline of the router's helps.
SETTINGS = {"WORKER_CONNECTIONS": str(CONNECTIONS), "CLIENT_HEADER_TIMEOUT_MS": "600000",
            "CLIENT_KEEPALIVE_SECS": "600"}


async def silent(port):
    """Send one byte, wait to be turned out, and come again."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"P")
                await reader.read()
            finally:
                writer.close()


async def probing(port, took):
    """Ask the health address steadily; add the seconds of each answer to a list."""
    while True:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PROBE)
        answer = await reader.read()
        writer.close()
        took.append(time.monotonic() - began if answer.endswith(b"ok") else float("inf"))
        await asyncio.sleep(PROBE_EVERY_S)


async def lean(url, traffic, seconds, report):
    """Lean on a router with one worker while good traffic runs.

    url      of its upstream
    traffic  called with the router's port and the end of the phase on the monotonic clock
    report   takes a line of text
    Returns  how many probes took too long
    """
    health, took = free_port(), []
    router = Router(url, HEALTH_LISTEN_ADDR=f"127.0.0.1:{health}", **SETTINGS)
    try:
        await asyncio.to_thread(router.__enter__)
        await asyncio.to_thread(router.wait_until_fed)
        background = [asyncio.create_task(silent(router.port)) for _ in range(SILENT)]
        background.append(asyncio.create_task(probing(health, took)))
        await traffic(router.port, time.monotonic() + seconds)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    finally:
        await asyncio.to_thread(router.stop)
    report(f"{SILENT} one-byte clients at {CONNECTIONS} connections for {seconds} s: {len(took)} "
           f"probes, median {1000 * sorted(took)[len(took) // 2]:.1f} ms, "
           f"longest {1000 * max(took):.1f} ms")
    return sum(each > PROBE_LIMIT_S for each in took)

"""A server as if it were far away: what passes takes half the round trip, each way.

A process of its own, so that what the test does meanwhile does not make the way longer.
"""

import asyncio
import contextlib
import subprocess
import sys

from tests.support.router import ROOT


class FarAway:
    """Passes bytes to a port of this host on and back; use as a context manager."""

    def __init__(self, port, round_trip_s):
        self._arguments = [str(port), str(round_trip_s / 2)]

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.far_away", *self._arguments], cwd=ROOT,
            stdout=subprocess.PIPE, text=True)
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


async def _pass_on(reader, writer, delay_s):
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            loop.call_later(delay_s, writer.write, data)
    loop.call_later(delay_s, writer.close)


async def _serve(port, delay_s):
    async def accept(reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, there_writer, delay_s),
                             _pass_on(there_reader, writer, delay_s))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))

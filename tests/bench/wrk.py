"""Closed-loop load by wrk, and what the server spends on it meanwhile."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile

from tests.bench.processes import LOAD_CORES, Server
from tests.support.router import DEADLINE_S

ROUND_S, CONNECTIONS = 2, 32
SMALL, BIG = 1_000, 500_000
_CHUNK = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-of-the-benchmark"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
file:close()
local clients = tonumber(os.getenv("CLIENTS"))
if clients > 1 then
    function request()
        wrk.headers["Authorization"] = "Bearer sk-" .. math.random(0, clients - 1)
        return wrk.format()
    end
end
function done(summary)
    local e = summary.errors
    print(string.format('{"requests":%d,"bytes":%d,"us":%d,"bad":%d}', summary.requests,
        summary.bytes, summary.duration, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """What is sent to whom.

    model   says what comes back; see tests.bench.upstream
    size    of the request's body, bytes
    events  in the answer; 0: it is not a stream
    clients  drawn from at random for each request, by their tokens sk-0, sk-1, ...
    """

    server: Server
    model: str
    size: int = SMALL
    events: int = 0
    connections: int = CONNECTIONS
    clients: int = 1

    def body(self):
        """Return the request's body."""
        text = json.dumps({"model": self.model, "stream": self.events > 0, "messages": [
            {"role": "user", "content": ""}]})
        return text.replace('""', '"%s"' % ("x" * (self.size - len(text)))).encode()


@dataclasses.dataclass(frozen=True)
class Rate:
    """What came of it.

    answers  a second
    cost_s   processor time of the server for each, seconds
    busy     part of a core it used
    pieces   chunks in which one answer came, where it was chunked
    rounds   the Rate of each round, where these are medians
    """

    answers: float
    cost_s: float
    busy: float
    pieces: int = 0
    rounds: tuple["Rate", ...] = ()

    @classmethod
    def of(cls, rounds):
        """Return the medians of some rounds, each figure's by itself."""
        figures = [field.name for field in dataclasses.fields(cls) if field.name != "rounds"]
        return cls(**{name: statistics.median(getattr(rate, name) for rate in rounds)
                      for name in figures}, rounds=tuple(rounds))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How a figure of one load compares with another's: round by round, and the median of those.

    What slows a machine down for some seconds slows both down, and leaves their ratio.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, one, other, figure="answers"):
        """Compare two Rates of the same interleaved rounds."""
        each = [getattr(mine, figure) / getattr(its, figure) if getattr(its, figure) else math.inf
                for mine, its in zip(one.rounds, other.rounds, strict=True)]
        return cls(statistics.median(each), min(each), max(each))

    def __str__(self):
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f} by round)"


def whole_answer(load):
    """Send one request and return the bytes of the answer; fail if it is not what was asked."""
    with socket.create_connection(("127.0.0.1", load.server.port), DEADLINE_S) as sock:
        received = exchange(sock, load.body())
    unframed = _CHUNK.sub(b"", received)
    words = len(re.findall(rb'"content": ?"(?: word[0-9]|@[0-9.]+@)"', unframed))
    assert received.startswith(b"HTTP/1.1 200 ") and words == load.events, received[:500]
    return received


def exchange(sock, body, token="sk-of-the-benchmark"):
    """Send a request on a connection and return the bytes of its answer, whatever it says."""
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: "
                 b"Bearer %s\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%s" % (token.encode(), len(body), body))
    received = b""
    while not _ended(received):
        data = sock.recv(1 << 20)
        assert data, received[:500]
        received += data
    return received


def _ended(received):
    head, found, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return found and (len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n"))


def run(load, whole, seconds):
    """Have wrk send for some seconds; return the Rate.

    whole  one answer: streams that the end of the time interrupts count by their bytes
    """
    with tempfile.TemporaryDirectory() as folder:
        script, body = pathlib.Path(folder, "post.lua"), pathlib.Path(folder, "body")
        script.write_text(SCRIPT)
        body.write_bytes(load.body())
        before = load.server.processor_s()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}", "--timeout", "60", "-s",
             str(script), f"http://127.0.0.1:{load.server.port}/v1/chat/completions"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "BODY": str(body), "CLIENTS": str(load.clients)},
            preexec_fn=lambda: os.sched_setaffinity(0, LOAD_CORES))
        spent_s = load.server.processor_s() - before
    seen = json.loads(done.stdout.splitlines()[-1])
    assert not seen["bad"], done.stdout
    answers = max(seen["requests"], seen["bytes"] / len(whole) if load.events else 0)
    took_s = seen["us"] / 1e6
    # A slow server may have answered nobody yet.
    return Rate(answers / took_s, spent_s / answers if answers else math.inf, spent_s / took_s,
                len(_CHUNK.findall(whole)))


def prepared(load, seconds=ROUND_S):
    """Look at an answer and warm the server up; return what runs the load for some seconds."""
    whole = whole_answer(load)
    run(load, whole, 1)
    return functools.partial(run, load, whole, seconds)


def in_turn(runs, rounds):
    """Call each of the runs one after the other, several times; return name -> Rate of medians.

    Every second round goes backwards, so that nobody is always the later one.
    """
    seen, names = {name: [] for name in runs}, list(runs)
    for _ in range(rounds):
        for name in names:
            seen[name].append(runs[name]())
        names.reverse()
    return {name: type(rates[0]).of(rates) for name, rates in seen.items()}


def interleaved(loads, rounds, seconds=ROUND_S):
    """Run the loads in turn, several times; return name -> Rate of medians."""
    return in_turn({name: prepared(load, seconds) for name, load in loads.items()}, rounds)


def require(*programs):
    """Leave with a sentence if a program of the system is missing."""
    for program in programs:
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install {program}")

"""Requests and streamed chunks a second of one worker, beside a Flask hello-world.

Everything in one run on one machine, interleaved round by round, medians taken; processor time
is the worker's own, read from the system, since these machines are shared. Needs wrk (Debian).
Run by `make bench`.
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap

from tests.support.router import ROOT, Router, free_port

ROUNDS, ROUND_S, CONNECTIONS = 5, 3, 32
HELLO = """
from flask import Flask
app = Flask("hello")


@app.post("/v1/chat/completions")
def hello():
    return "hello world"
"""
# The settings of the router's own gunicorn, with the stock worker.
HELLO_SETTINGS = ["--worker-class", "gevent", "--workers", "1", "--worker-connections", "2000",
                  "--keep-alive", "75", "--no-control-socket"]
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-of-the-benchmark"
wrk.body = '{"model":"' .. os.getenv("MODEL") .. '","stream":true,"messages":[' ..
    '{"role":"user","content":"' .. string.rep("x", tonumber(os.getenv("SIZE"))) .. '"}]}'
"""
BODY_BYTES = 900


class Target:
    """A server's port, and the process whose time is counted."""

    def __init__(self, port, pid):
        self.port, self.pid = port, pid

    def processor_s(self):
        """Return the user and system time of the process so far, seconds."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, script, model):
        """Return requests a second under load, and the process's seconds a request."""
        before = self.processor_s()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}", "-s", script,
             f"http://127.0.0.1:{self.port}/v1/chat/completions"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "MODEL": model, "SIZE": str(BODY_BYTES)})
        assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
        requests = int(done.stdout.partition(" requests in ")[0].split()[-1])
        rate = float(done.stdout.partition("Requests/sec:")[2].split()[0])
        return rate, (self.processor_s() - before) / requests


def started(command, **options):
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True, **options)


def child_of(pid):
    """Return the one child of a gunicorn master, once there is one."""
    while True:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])


def measure(targets, script):
    """Return case -> median of (rate, seconds of processor a request), rounds interleaved."""
    seen = {case: [] for case in targets}
    for _ in range(ROUNDS):
        for case, (target, model) in targets.items():
            seen[case].append(target.load(script, model))
    return {case: tuple(map(statistics.median, zip(*rounds))) for case, rounds in seen.items()}


def report(results):
    """Print the table."""
    hello = results["Flask hello-world"]
    print(f"{'case':34} {'requests/s':>10} {'chunks/s':>10} {'CPU us/req':>11} "
          f"{'of hello':>9} {'CPU x':>6}")
    for case, (rate, cost) in results.items():
        chunks = int(case.rpartition(" ")[2]) if "chunks of" in case else 0
        shown = f"{rate * chunks:10.0f}" if chunks else " " * 10
        print(f"{case:34} {rate:10.0f} {shown} {cost * 1e6:11.0f} {rate / hello[0]:9.2f} "
              f"{cost / hello[1]:6.2f}")


def main():
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder, "post.lua")
        script.write_text(LUA)
        pathlib.Path(folder, "hello.py").write_text(textwrap.dedent(HELLO))
        upstream = started(["-m", "tests.bench.upstream"])
        port, hello_port = int(upstream.stdout.readline()), free_port()
        hello = started(["-m", "gunicorn", *HELLO_SETTINGS, "--chdir", folder, "--bind",
                         f"127.0.0.1:{hello_port}", "-c", os.devnull, "hello:app"])
        try:
            with Router(f"http://127.0.0.1:{port}", LOG_LEVEL="info") as router:
                [ready] = router.wait_for_lines(lambda line: line["message"] == "worker ready")
                ours = Target(router.port, ready["pid"])
                direct = Target(port, upstream.pid)
                stock = Target(hello_port, child_of(hello.pid))
                report(measure({
                    "Flask hello-world": (stock, "x"),
                    "router, direct": (ours, "plain"),
                    "router, alias, sticky": (ours, "chutesai/AutoPilot"),
                    "router, chunks of 100": (ours, "stream-100"),
                    "router, chunks of 1000": (ours, "stream-1000"),
                    "upstream alone": (direct, "x"),
                    "upstream alone, chunks of 1000": (direct, "stream-1000")}, str(script)))
        finally:
            for process in (hello, upstream):
                process.terminate()
                process.wait()
                process.stdout.close()


if __name__ == "__main__":
    main()

"""The processes of a measurement: started, kept apart, read from the system, stopped.

The server measured has the first core for itself; upstream and load generators share the others,
so that a server that is not busy all the time was not the bottleneck.
"""

import contextlib
import http.client
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import time

from tests.support.router import DEADLINE_S, ROOT, Router, free_port

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES, LOAD_CORES = set(CORES[:1]), set(CORES[1:] or CORES)
HELLO = """
    from flask import Flask
    app = Flask("hello")


    @app.post("/v1/chat/completions")
    def hello():
        return "hello world"


    @app.get("/readyz")
    def ready():
        return "ready"
    """
# The settings of the router's own gunicorn, with the stock worker.
HELLO_SETTINGS = ["--worker-class", "gevent", "--workers", "1", "--worker-connections", "2000",
                  "--keep-alive", "75", "--no-control-socket", "-c", os.devnull]


class Server:
    """A server's port, and its processes as the system sees them."""

    def __init__(self, port, process):
        self.port, self.process = port, process

    def pids(self):
        """Return the process and all that descend from it; one may end meanwhile."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    found.extend(map(int, (task / "children").read_text().split()))
        return found

    def processor_s(self):
        """Return the user and system time of all the processes so far, seconds.

        Their own clocks tell it to the microsecond, /proc/PID/stat to a hundredth of a second.
        """
        # What clock_getcpuclockid(3) makes of a process id, which Python does not have.
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.pids())

    def threads(self):
        """Return how many threads its processes have together."""
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.pids())

    def memory_kb(self, field="Pss"):
        """Return the memory of each process, KB, the first one's first.

        field  "Pss" counts a share of what is shared, "Rss" all of it, "Anonymous" nothing
        """
        return [_memory_kb(pid, field) for pid in self.pids()]


def _memory_kb(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, *values = line.split()
        if name == field + ":":
            return int(values[0])
    raise KeyError(field)


def started(command, cores, cwd=ROOT, **options):
    """Start a process on these cores only."""
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.DEVNULL,
                            preexec_fn=lambda: os.sched_setaffinity(0, cores), **options)


def stop(process):
    """End a process of ours and wait for it."""
    process.terminate()
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(port, path):
    """Say whether a GET gets a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def running(command, port, ready_path, *, cores=SERVER_CORES, patience_s=DEADLINE_S, **options):
    """Run a server and yield it once `ready_path` answers; what it logs goes to a file.

    ready_path  None: it is yielded at once, with whatever it does before it serves to come
    """
    with tempfile.TemporaryFile() as log:
        process = started(command, cores, stdout=log, **options)
        try:
            until = time.monotonic() + patience_s
            while ready_path and not answers(port, ready_path):
                assert process.poll() is None and time.monotonic() < until, f"no {command[0]}"
                time.sleep(0.01)
            yield Server(port, process)
        finally:
            stop(process)


@contextlib.contextmanager
def beside():
    """Keep this thread, and those it starts, off the core of the server measured for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, LOAD_CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def upstream():
    """Run the scripted upstream."""
    process = started([sys.executable, "-m", "tests.bench.upstream"], LOAD_CORES,
                      stdout=subprocess.PIPE, text=True)
    with process.stdout:
        try:
            yield Server(int(process.stdout.readline()), process)
        finally:
            stop(process)


def router(backend, *, cores=SERVER_CORES, tree=ROOT, python=sys.executable,
           ready_path="/readyz", **environment):
    """Run the router in front of a backend, everything on, one worker unless told otherwise.

    tree, python  whose `app/` and `gunicorn.conf.py` are run, and what runs them
    ready_path    as `running` has it
    """
    plan = Router(f"http://127.0.0.1:{backend.port}",
                  **{"LOG_LEVEL": "info", "PYTHONPATH": "", **environment})
    return running([python, "-m", "gunicorn"], plan.port, ready_path, cores=cores, cwd=tree,
                   env=plan.environment)


def quiet_router(backend):
    """Run the router without its logs and metrics."""
    return router(backend, GUNICORN_CMD_ARGS="-c tests/bench/quiet_conf.py")


@contextlib.contextmanager
def hello():
    """Run a Flask hello-world on the router's gunicorn settings."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "hello.py").write_text(textwrap.dedent(HELLO))
        with running([sys.executable, "-m", "gunicorn", *HELLO_SETTINGS, "--chdir", folder,
                      "--bind", f"127.0.0.1:{port}", "hello:app"], port, "/readyz") as server:
            yield server

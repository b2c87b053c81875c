"""The router as a process: gunicorn as an operator starts it, and clients that look closely."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = ROOT / "tests" / "support" / "probe"
PROBE_SIGNAL = signal.SIGRTMIN + 5
TOLD_WITHIN_S = 0.1
DEADLINE_S = 20.0


def free_port():
    """Return a port nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def crowd(count, lean):
    """Have so many threads lean on a router; `lean` gets an event that is set when it is to end."""
    over = threading.Event()
    threads = [threading.Thread(target=lean, args=(over,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Router:
    """A running router; use as a context manager.

    environment  variables on top of a bare one; LISTEN_ADDR is chosen here unless given
    lines        what it logged so far, one dict a line
    command, folder, user  how it is started: this repository's, unless changed before
    """

    def __init__(self, upstream_url, **environment):
        self.port = free_port()
        self.environment = {
            "PATH": os.environ["PATH"], "LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "BACKEND_BASE_URL": upstream_url, "MODELS_URL": f"{upstream_url}/v1/models",
            "UTILIZATION_URL": f"{upstream_url}/chutes/utilization", "WEB_CONCURRENCY": "1",
            "GRACEFUL_TIMEOUT_SECS": "5", "LOG_LEVEL": "debug", "PYTHONPATH": str(PROBE),
            **environment}
        self.command, self.folder, self.user = [sys.executable, "-m", "gunicorn"], ROOT, None
        self.lines = []
        self._news = threading.Condition()

    def __enter__(self):
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=self.environment, user=self.user, group=self.user,
            extra_groups=None if self.user is None else [],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_until_up(self):
        """Wait until every worker serves."""
        workers = int(self.environment["WEB_CONCURRENCY"])
        self.wait_for_lines(lambda line: line["message"] == "worker ready", workers)

    def __exit__(self, *_):
        self.stop()

    def stop(self, how=signal.SIGTERM):
        """Signal the master and wait for its end; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.wait()

    def wait(self):
        """Wait for the master's end and return its exit status."""
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self.process.stdout.close()
        return self.process.returncode

    def connections(self, port=None):
        """Return (worker's pid, client's port) of each connection the workers have accepted."""
        found, ports = [], {}
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
            if int(local.split(":")[1], 16) == (port or self.port):
                ports[f"socket:[{inode}]"] = int(remote.split(":")[1], 16)
        master = self.process.pid
        for pid in pathlib.Path(f"/proc/{master}/task/{master}/children").read_text().split():
            for held in pathlib.Path(f"/proc/{pid}/fd").iterdir():
                # One that has just been closed is gone, which is as good as another's.
                with contextlib.suppress(FileNotFoundError):
                    found += [(int(pid), ports[name]) for name in [os.readlink(held)]
                              if ports.get(name)]
        return found

    def wait_for_connections(self, count):
        """Wait until the workers have accepted so many connections."""
        until(lambda: len(self.connections()) == count)

    def worker_of(self, client):
        """Return the pid of the worker that serves a client's socket."""
        [pid] = [pid for pid, port in self.connections() if port == client.getsockname()[1]]
        return pid

    @contextlib.contextmanager
    def one_client_of_each_worker(self):
        """Yield a connection to each worker, by the worker's pid."""
        clients = {}
        with contextlib.ExitStack() as open_clients:
            while len(clients) < int(self.environment["WEB_CONCURRENCY"]):
                client = open_clients.enter_context(contextlib.closing(self.connect()))
                client.request("GET", "/healthz")
                client.getresponse().read()
                clients.setdefault(self.worker_of(client.sock), client)
            yield clients

    def wait_until_refusing(self):
        """Wait until nobody accepts connections any more."""
        def refused():
            try:
                socket.create_connection(("127.0.0.1", self.port), DEADLINE_S).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                pass
            return False
        until(refused)

    def _read(self):
        for line in self.process.stdout:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": line.decode().rstrip()}
            with self._news:
                self.lines.append(entry)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for_lines(self, wanted, count=1, timeout=DEADLINE_S, since=0):
        """Wait until `count` lines from number `since` on satisfy `wanted`; return them."""
        def found():
            return [line for line in self.lines[since:] if wanted(line)]
        with self._news:
            enough = self._news.wait_for(
                lambda: len(found()) >= count or self.process.poll() is not None, timeout)
        lines = found()
        assert enough and len(lines) >= count, f"{len(lines)} of {count} lines in {self.lines}"
        return lines

    def wait_until_fed(self):
        """Wait until every worker has both feeds."""
        workers = int(self.environment["WEB_CONCURRENCY"])
        self.wait_for_lines(lambda line: line["message"] == "feed refreshed", 2 * workers)

    def probe(self):
        """Have every worker count its descriptors, greenlets and memory; return the reports."""
        pids = {line["pid"] for line in self.lines if line["message"] == "worker ready"}
        since = len(self.lines)
        for pid in pids:
            os.kill(pid, PROBE_SIGNAL)
        return self.wait_for_lines(
            lambda line: line["message"] == "probe", len(pids), since=since)

    def metrics(self):
        """Scrape; return (name without prefix, *label values) -> value."""
        answer = self.get("/metrics")
        assert answer.status == 200 and answer.value("Content-Type").startswith("text/plain")
        return {
            (sample.name.removeprefix("chutes_autopilot_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples}

    def metrics_at_rest(self):
        """Scrape when every request has ended, and every worker has told of it.

        A client has its answer a moment before that, and a worker that is busy, with its feeds for
        example, tells of it a tenth of a second later (001-R13).
        """
        told_at = time.monotonic() + 2 * TOLD_WITHIN_S
        until(lambda: self.metrics()["requests_active",] == 0 and time.monotonic() > told_at)
        return self.metrics()

    def counted_since(self, before):
        """Return what the counters have risen by since the `metrics()` of before.

        Without those that rise with the traffic and the time, and say nothing of what went wrong.
        """
        return {key: value - before.get(key, 0) for key, value in self.metrics_at_rest().items()
                if key[0].endswith("_total") and value != before.get(key, 0)
                and key[0] not in ("response_bytes_total", "sticky_total", "refreshes_total")}

    def runtime_directory(self):
        """Return the directory whose lock the master holds."""
        held = pathlib.Path(f"/proc/{self.process.pid}/fd")
        [lock] = [path for path in map(os.readlink, held.iterdir()) if path.endswith("/lock")]
        return pathlib.Path(lock).parent

    def record(self, request_id):
        """Wait for the log line of a request and return it."""
        return self.wait_for_lines(
            lambda line: line["message"] == "request" and line["request_id"] == request_id)[0]

    def connect(self, timeout=DEADLINE_S, port=None):
        """Return a client connection."""
        return http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)

    def post(self, body, headers=None, path="/v1/chat/completions", port=None):
        """Send a request on a connection of its own and return the whole Answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect(port=port)
        try:
            connection.request("POST", path, data,
                               {"Content-Type": "application/json", **(headers or {})})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def chat(self, model, *, stream=True, headers=None, port=None, **more):
        """Ask `model` something."""
        return self.post({"model": model, "stream": stream, "messages": [
            {"role": "user", "content": "hello"}], **more}, headers, port=port)

    def get(self, path, headers=None, method="GET", port=None):
        """Send a request without a body and return the whole Answer."""
        connection = self.connect(port=port)
        try:
            connection.request(method, path, headers=headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def exchange(self, data, timeout=DEADLINE_S):
        """Send bytes as they are, read until the router closes, return what came."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            sock.sendall(data)
            return read_to_end(sock)


def until(true):
    """Ask again and again until the answer is yes."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(0)


def read_until(sock, marker):
    """Return what a socket yields up to where `marker` has come; fail if it ends before."""
    received = b""
    while marker not in received:
        data = sock.recv(65536)
        assert data, f"ended after {received!r}"
        received += data
    return received


def read_to_end(sock):
    """Return everything a socket yields until its end or a reset."""
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


class Answer:
    """A response as a client saw it.

    ended  "complete", or "cut" where the transfer lacks its proper end
    """

    def __init__(self, response):
        self.status = response.status
        self.reason = response.reason
        self.fields = response.getheaders()
        try:
            self.body, self.ended = response.read(), "complete"
        except http.client.IncompleteRead as error:
            self.body, self.ended = error.partial, "cut"
        except ConnectionResetError:
            self.body, self.ended = b"", "cut"

    def values(self, name):
        """Return all values of a header field."""
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def value(self, name):
        """Return the one value of a header field, or None."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def error(self):
        """Return the error object of an answer made by the router."""
        assert self.value("Content-Type") == "application/json"
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def __repr__(self):
        return f"<Answer {self.status} {self.ended} {self.body[:200]!r}>"

"""A real Redis, from the system's package, started and stopped by the tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile

from tests.support.router import DEADLINE_S, free_port


class RedisServer:
    """A Redis on a port of its own, nothing on disk; use as a context manager.

    options  more arguments of redis-server
    """

    def __init__(self, port=None, host="127.0.0.1", options=()):
        self.port, self.host = port or free_port(), host
        self.url = f"redis://{host}:{self.port}/0"
        self._options = options

    def __enter__(self):
        assert shutil.which("redis-server"), "redis-server is missing: apt-get install redis-server"
        self._folder = tempfile.mkdtemp()
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", self.host, "--save", "",
             "--appendonly", "no", "--dir", self._folder, *self._options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return self
        raise AssertionError("redis-server did not start")

    def __exit__(self, *_):
        self.thaw()
        self.kill()
        self.process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def command(self, *words):
        """Send one command and return the raw answer."""
        with socket.create_connection((self.host, self.port), DEADLINE_S) as sock:
            sock.sendall(b"*%d\r\n" % len(words) + b"".join(
                b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words))
            return sock.recv(1 << 20)

    def kill(self):
        """End it at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(DEADLINE_S)

    def freeze(self):
        """Stop its process: connections stay, answers do not come."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self):
        """Let it run again."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)

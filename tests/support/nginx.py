"""A real nginx with the files of deploy/, started and stopped by the tests."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile

from tests.support.router import DEADLINE_S, ROOT, free_port, until

SITE = ROOT / "deploy" / "nginx" / "chutes-router.conf"
MAIN = ROOT / "deploy" / "nginx" / "nginx.conf"


def replaced(path, words):
    """Return a file's text with some words of it replaced, each of which is there once."""
    text = path.read_text()
    for given, ours in words.items():
        assert text.count(given) == 1, given
        text = text.replace(given, ours)
    return text


def executable(name):
    """Return a program's path; servers live where a user's PATH may not look."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert path, f"{name} is missing"
    return path


class Nginx:
    """The site file in front of a router; use as a context manager.

    upstream   what stands behind `server`: host:port, or unix:/path
    port       where it listens, on every loopback address
    locations  of an operator's own, put before the site's
    """

    def __init__(self, upstream, locations=""):
        self._upstream, self.port = upstream, free_port()
        self.folder = pathlib.Path(tempfile.mkdtemp())
        (self.folder / "site.conf").write_text(replaced(SITE, {
            "    listen 80 default_server": f"    listen {self.port} default_server",
            "    listen [::]:80 ": f"    {self._by_ipv6()}",
            "server 127.0.0.1:8080;": f"server {upstream};",
            "    location / {": f"{locations}    location / {{",
            "/var/log/nginx/access.log": f"{self.folder}/access.log"}))
        (self.folder / "nginx.conf").write_text(replaced(MAIN, {
            "user www-data;": "user root;" if os.geteuid() == 0 else "",
            "worker_processes auto;": "worker_processes 1; daemon off;",
            "/var/log/nginx/error.log crit;": f"{self.folder}/error.log info;",
            "/run/nginx.pid": f"{self.folder}/pid",
            "/var/log/nginx/access.log": f"{self.folder}/main.log",
            "/etc/nginx/conf.d/*.conf": f"{self.folder}/site.conf",
            "/etc/nginx/sites-enabled/*": f"{self.folder}/sites-enabled/*",
            "http {": "http {" + "".join(f" {kind}_temp_path {self.folder}/{kind};" for kind in (
                "client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}))

    def _by_ipv6(self):
        """Return how the directive begins; it is a comment where there are no such addresses."""
        try:
            socket.create_server(("::1", self.port), family=socket.AF_INET6).close()
        except OSError:
            return "# "
        return f"listen [::]:{self.port} "

    def __enter__(self):
        self.process = subprocess.Popen(
            [executable("nginx"), "-c", self.folder / "nginx.conf",
             "-e", self.folder / "error.log"],
            stderr=subprocess.DEVNULL)

        def listening():
            assert self.process.poll() is None, (self.folder / "error.log").read_text()
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.port)) == 0

        until(listening)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        shutil.rmtree(self.folder)

    def _workers(self):
        """Return the directory in /proc of each worker."""
        master = self.process.pid
        children = pathlib.Path(f"/proc/{master}/task/{master}/children").read_text()
        return [pathlib.Path("/proc", pid) for pid in children.split()]

    def files_written(self):
        """Return the temporary files nginx has open; it unlinks them as soon as they are made."""
        held = [os.readlink(path) for worker in self._workers()
                for path in (worker / "fd").iterdir()]
        return [name for name in held if "/client_body/" in name or "/proxy/" in name]

    def memory_bytes(self):
        """Return the most memory the workers have had resident at a time."""
        return 1024 * sum(int(re.search(r"VmHWM:\s*(\d+)", (worker / "status").read_text())[1])
                          for worker in self._workers())

    def connections(self):
        """Return the connections its upstream has, over TCP or a unix socket."""
        said = subprocess.run(["ss", "-Hntx", "state", "established"], capture_output=True,
                              text=True, check=True).stdout
        return [line for line in said.splitlines()
                if self._upstream.removeprefix("unix:") in line.split()[3:4]]

    def logged(self):
        """Return the access log's lines as dicts; a request is in it when it is over."""
        text = (self.folder / "access.log").read_text()
        return [json.loads(line) for line in text.splitlines()]

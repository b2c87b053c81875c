"""A real nginx with the site file of deploy/, started and stopped by the tests."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile

from tests.support.router import DEADLINE_S, ROOT, free_port, until

SITE = ROOT / "deploy" / "nginx" / "chutes-router.conf"
# What a distribution's nginx.conf says around a site file, kept to a folder of its own.
AROUND = """
daemon off; {user}
pid {folder}/pid; error_log {folder}/error.log info; worker_processes 1;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {folder}/bodies; proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/site.conf;
}}
"""


def executable(name):
    """Return a program's path; servers live where a user's PATH may not look."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert path, f"{name} is missing"
    return path


class Nginx:
    """The site file in front of a router; use as a context manager.

    upstream  what stands behind `server`: host:port, or unix:/path
    port      where it listens, on every loopback address
    """

    def __init__(self, upstream):
        self._upstream, self.port = upstream, free_port()
        self.folder = pathlib.Path(tempfile.mkdtemp())
        site = SITE.read_text()
        for given, ours in (("listen 80 default_server;", f"listen {self.port} default_server;"),
                            ("server 127.0.0.1:8080;", f"server {upstream};"),
                            ("/var/log/nginx/access.log", str(self.folder / "access.log"))):
            assert site.count(given) == 1
            site = site.replace(given, ours)
        (self.folder / "site.conf").write_text(site)
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(AROUND.format(folder=self.folder, user=user))

    def __enter__(self):
        self.process = subprocess.Popen(
            [executable("nginx"), "-c", self.folder / "nginx.conf", "-p", self.folder],
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

    def files_written(self):
        """Return the temporary files nginx has open; it unlinks them as soon as they are made."""
        master = self.process.pid
        held = []
        for pid in pathlib.Path(f"/proc/{master}/task/{master}/children").read_text().split():
            held += [os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
        return [name for name in held if "/bodies/" in name or "/proxied/" in name]

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

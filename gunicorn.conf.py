"""How gunicorn runs the router; everything variable comes from the environment.

Only light modules may be imported here: gevent patches the standard library in each worker,
after this file has run.
"""

import atexit
import contextlib
import os
import resource
import secrets
import signal
import sys
import time

from app.config import RUNTIME_DIRECTORY, RUNTIME_OWNER, ConfigError, load_config
from app.logs import logging_config
from app.shared.directory import has_room, make_runtime_directory, remove_runtime_directory

try:
    # Not named config: that is a setting of gunicorn's.
    settings = load_config()
except ConfigError as error:
    sys.exit(str(error))

# All workers must agree on client keys, so the key is drawn before they are forked.
if not settings.sticky_hash_secret:
    os.environ["STICKY_HASH_SECRET"] = secrets.token_hex()

wsgi_app = "app.wsgi:application"
worker_class = "app.worker.RouterWorker"
bind = settings.addresses
workers = settings.web_concurrency
worker_connections = settings.worker_connections
graceful_timeout = settings.graceful_timeout_secs

# A worker whose event loop stands still this long is replaced; streams do not count.
timeout = 30
# Idle client connections, and the time for a request's head. Longer than whoever stands in front
# keeps its own (nginx 60 s, that of deploy/ 4 s): the side that speaks is never the one surprised.
keepalive = 75
# The request log is the app's own; it says more and leaves out addresses.
logger_class = "app.worker.RouterLogger"
logconfig_dict = logging_config(settings.log_level)
# Headers by which a peer could change the path or the scheme of its request: none. Whom gunicorn
# would believe them makes no difference then; to look it up took a fortieth of a request.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"
# It would write below the home directory, which may be read-only.
control_socket_disable = True

# What the workers share: counters, sticky choices, fetched feeds. At a reload this file is read
# again by the same master, and what it made stays; at an upgrade (USR2) another master inherits
# the environment, and makes its own.
if os.environ.get(RUNTIME_OWNER) != str(os.getpid()):
    os.environ[RUNTIME_OWNER] = str(os.getpid())
    os.environ[RUNTIME_DIRECTORY] = make_runtime_directory()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ[RUNTIME_DIRECTORY] + "/metrics"
    os.mkdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])
# Where workers show that they live. On a disk a slow write would make them look dead.
worker_tmp_dir = os.environ[RUNTIME_DIRECTORY]

# What a worker maps there at its start, many times over.
LEAST_ROOM_BYTES = 2 * 1024 * 1024

# A client's connection and its upstream's, and what a worker has open besides.
FILES_NEEDED = (1 + len(settings.addresses)) * settings.worker_connections + 200
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with contextlib.suppress(OSError, ValueError):
    # Where it is refused the one below must do; whether it does is said at the start.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@atexit.register
def leave_nothing_behind():
    """Remove what the master made, however it ends; its workers inherit this, but are not it."""
    if os.environ[RUNTIME_OWNER] == str(os.getpid()):
        remove_runtime_directory(os.environ[RUNTIME_DIRECTORY])


def on_starting(server):
    """Say once, in the master, what the service runs with."""
    server.log.info("configuration", extra={"environment": settings.effective()})
    asked = settings.max_inflight_requests
    taken = asked.resolve(settings.worker_connections)
    if taken < asked.number:
        server.log.warning("MAX_INFLIGHT_REQUESTS is more than WORKER_CONNECTIONS allows",
                           extra={"asked": asked.number, "taken": taken})
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < FILES_NEEDED:
        server.log.warning("too few open files allowed for WORKER_CONNECTIONS",
                           extra={"allowed": allowed, "needed": FILES_NEEDED})


def post_fork(server, worker):
    """Heed a signal that comes before the worker's own handlers are there: nothing is served yet.

    Until then it would go into the queue that the worker has inherited from its master, for ever.
    """
    endings = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)

    def end(*_):
        # Once: the master's own signal comes on top of the inherited one, and would break into
        # what is done at exit.
        for number in endings:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    for number in endings:
        signal.signal(number, end)
    while not server.SIG_QUEUE.empty():
        if server.SIG_QUEUE.get() in endings:
            end()
    if not has_room(worker_tmp_dir, LEAST_ROOM_BYTES):
        # It would be killed as soon as it counts something; the next try is the master's.
        server.log.error("no room in the runtime directory for a worker to start")
        time.sleep(1)
        sys.exit(0)


def post_worker_init(worker):
    """Start what runs beside requests, once the worker can serve them."""
    worker.wsgi.extensions["router"].start()
    worker.log.info("worker ready")


def worker_exit(server, worker):
    """End what runs beside requests."""
    if getattr(worker, "wsgi", None) is not None:
        worker.wsgi.extensions["router"].stop()

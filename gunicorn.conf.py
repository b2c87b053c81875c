"""How gunicorn runs the router. Everything that can be set comes from the environment.

This file runs in the master, before gevent patches the standard library in each worker. It must
not import a module that opens sockets, because that module would keep the unpatched ones.
"""

import atexit
import contextlib
import os
import pathlib
import resource
import secrets
import signal
import sys
import time

# At a reload the master would go on with the modules that it has, beside those of its new workers.
for module in [name for name in sys.modules if name.split(".")[0] == "app"]:
    del sys.modules[module]

from app.config import (ALIASES_TEXT, RUNTIME_DIRECTORY, RUNTIME_OWNER, STARTED_AT,  # noqa: E402
                        ConfigError, load_config)
from app.logs import logging_config  # noqa: E402
from app.master import judge_arguments, only_checks, refuse_unsound_reloads  # noqa: E402
from app.shared.directory import (METRICS, NoDirectory, join_runtime_directory,  # noqa: E402
                                  make_runtime_directory, remove_runtime_directory)
from app.worker import RouterLogger, RouterWorker  # noqa: E402

ARGUMENTS = os.environ.get("GUNICORN_CMD_ARGS", "")
problems = judge_arguments(ARGUMENTS, sys.argv[1:])
try:
    # The name `config` would be taken for a setting of gunicorn.
    settings = load_config()
except ConfigError as error:
    problems.append(str(error))
if problems:
    sys.exit("\n".join(problems))

# All workers must derive the same client keys, so the secret is made before they are forked.
if not settings.sticky_hash_secret:
    os.environ["STICKY_HASH_SECRET"] = secrets.token_hex()

wsgi_app = "app.wsgi:application"
worker_class = RouterWorker
bind = settings.addresses
workers = settings.web_concurrency
graceful_timeout = settings.graceful_timeout_secs

# Seconds. The master replaces a worker whose event loop stands still for this long. A long stream
# does not stop the event loop.
timeout = 30
keepalive = settings.client_keepalive_secs
limit_request_field_size = settings.max_header_field_bytes
# The app logs requests itself: with more detail, and without addresses.
logger_class = RouterLogger
logconfig_dict = logging_config(settings.log_level)
# No header may change a request's path or scheme, so the list of trusted peers is irrelevant. "*"
# spares gunicorn a search in that list, which took 2.5 % of the time of a request.
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
forwarded_allow_ips = "*"
# The control socket would be made below the home directory, which may be read-only.
control_socket_disable = True

# The workers share counters, sticky choices and fetched feeds in this directory. At a reload
# (SIGHUP) the same master reads this file again and keeps its directory. At an upgrade (SIGUSR2) a
# new master inherits the environment; it makes a directory of its own. A check of the configuration
# inherits it too, from the master that reloads: it keeps its hands off every directory.
if only_checks(ARGUMENTS, sys.argv[1:]):
    for name in (RUNTIME_OWNER, RUNTIME_DIRECTORY, "PROMETHEUS_MULTIPROC_DIR"):
        os.environ.pop(name, None)
elif os.environ.get(RUNTIME_OWNER) != str(os.getpid()):
    try:
        directory = make_runtime_directory(settings.web_concurrency)
    except NoDirectory as error:
        sys.exit(str(error))
    os.environ[RUNTIME_OWNER] = str(os.getpid())
    os.environ[STARTED_AT] = str(time.time())
    os.environ[RUNTIME_DIRECTORY] = directory
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.path.join(directory, METRICS)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with contextlib.suppress(OSError, ValueError):
    # If this is refused the soft limit stays; on_starting warns if it is too low.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
files_allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
worker_connections = settings.places(files_allowed)


@atexit.register
def leave_nothing_behind():
    """Remove the runtime directory when the master ends; workers inherit this and do nothing."""
    if os.environ.get(RUNTIME_OWNER) == str(os.getpid()):
        remove_runtime_directory(os.environ[RUNTIME_DIRECTORY])


def on_starting(server):
    """Log the effective configuration once, in the master, and warn of limits that are too low."""
    refuse_unsound_reloads(server)
    given = {"GUNICORN_CMD_ARGS": ARGUMENTS} if ARGUMENTS else {}
    server.log.info("configuration", extra={"environment": settings.effective() | given})
    asked = settings.max_inflight_requests
    taken = asked.resolve(worker_connections)
    if taken < asked.number:
        server.log.warning("MAX_INFLIGHT_REQUESTS is more than WORKER_CONNECTIONS allows",
                           extra={"asked": asked.number, "taken": taken})
    if worker_connections < settings.worker_connections:
        server.log.warning(
            "too few open files allowed for WORKER_CONNECTIONS: each worker takes fewer",
            extra={"allowed": files_allowed, "needed": settings.files_needed(),
                   "asked": settings.worker_connections, "taken": worker_connections})


def post_fork(server, worker):
    """Prepare a worker before it has loaded the app.

    On a signal that comes before it has set its own handlers it ends at once. The handlers
    inherited from the master would put the signal into a queue that nobody reads here. The worker
    serves no request yet, so it can just exit.
    """
    endings = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)

    def end(*_):
        # Only once: a second signal, from the master, would interrupt the exit handlers.
        for number in endings:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    for number in endings:
        signal.signal(number, end)
    # A worker that replaces a dead one gets the aliases that were judged here, whatever the file
    # says by now. This is the worker's environment; the master reads the file anew at a reload.
    os.environ[ALIASES_TEXT] = settings.aliases_file.text
    while not server.SIG_QUEUE.empty():
        if server.SIG_QUEUE.get() in endings:
            end()
    # If somebody has removed the directory, the master's lock is gone with it. Without one the next
    # router to start would take the new directory for abandoned.
    with contextlib.suppress(OSError):
        join_runtime_directory(pathlib.Path(os.environ[RUNTIME_DIRECTORY]))


def post_worker_init(worker):
    """Start the background jobs, once the worker can serve requests."""
    worker.wsgi.extensions["router"].start()
    worker.log.info("worker ready")


def worker_exit(server, worker):
    """Stop the background jobs."""
    if getattr(worker, "wsgi", None) is not None:
        worker.wsgi.extensions["router"].stop()

"""The router's gunicorn configuration with logs and metrics off; for the benchmark alone.

The router has no switch for that: each worker's loggers and counters are made to do nothing once
it is up.
"""

import logging
import os
import pathlib

# The router refuses another configuration than its own; gunicorn has read this by now.
os.environ.pop("GUNICORN_CMD_ARGS", None)
exec(pathlib.Path("gunicorn.conf.py").read_text(), globals())
_as_ever = globals()["post_worker_init"]


def post_worker_init(worker):
    """Start as ever, then fall silent."""
    from app import journal, metrics
    _as_ever(worker)
    logging.disable(logging.CRITICAL)
    metrics.count = metrics.measure = lambda *_, **__: None
    journal.RequestRecord.finish = lambda record: [told() for told in record.on_finish]

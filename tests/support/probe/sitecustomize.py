"""Looks into a router's processes from outside the app: put this directory on PYTHONPATH.

On SIGNAL a process writes one line to stdout: its open descriptors, live greenlets, resident
memory, and what only the garbage collector could free. Names under `slow.invalid` take their time
to resolve.
"""

import _socket
import gc
import json
import os
import signal
import time

SIGNAL = signal.SIGRTMIN + 5
_SLOW_S = 3.0
_really_sleep, _really_look_up = time.sleep, _socket.getaddrinfo


def _report(*_):
    from greenlet import greenlet
    # Before the collection: a descriptor that only the collector would close is a leak.
    descriptors = len(os.listdir("/proc/self/fd"))
    garbage = gc.collect()
    greenlets = sum(isinstance(thing, greenlet) and not thing.dead for thing in gc.get_objects())
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    line = {"message": "probe", "pid": os.getpid(), "greenlets": greenlets,
            "descriptors": descriptors, "resident": resident, "garbage": garbage}
    os.write(1, json.dumps(line).encode() + b"\n")


def _look_up(host, *args, **kwargs):
    if str(host).endswith("slow.invalid"):
        _really_sleep(_SLOW_S)
    return _really_look_up(host, *args, **kwargs)


signal.signal(SIGNAL, _report)
_socket.getaddrinfo = _look_up

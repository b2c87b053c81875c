"""Looks into a router's processes from outside the app: put this directory on PYTHONPATH.

On SIGNAL a process writes one line to stdout: its open descriptors, live greenlets, resident
memory, and what only the garbage collector could free. Names under `slow.invalid` take their time
to resolve. The file that NAMES names is a resolver: a JSON object of names and their addresses, as
they are now. While the addresses of a name are empty nobody answers, and a look-up fails after 5 s.
"""

import _socket
import gc
import json
import os
import signal
import time

SIGNAL = signal.SIGRTMIN + 5
_SLOW_S, _SILENT_S, _POLL_S = 3.0, 5.0, 0.02
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
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host.endswith("slow.invalid"):
        _really_sleep(_SLOW_S)
    file, gives_up_at = os.environ.get("NAMES"), time.monotonic() + _SILENT_S
    while file:
        with open(file) as names:
            addresses = json.load(names).get(host, [host])
        if addresses:
            return [found for address in addresses
                    for found in _really_look_up(address, *args, **kwargs)]
        if time.monotonic() > gives_up_at:
            raise _socket.gaierror(_socket.EAI_AGAIN, "no answer")
        _really_sleep(_POLL_S)
    return _really_look_up(host, *args, **kwargs)


signal.signal(SIGNAL, _report)
_socket.getaddrinfo = _look_up

"""The router beside LiteLLM, vllm-router and nginx, all in one run: `make bench-peers`.

Each has one worker or one thread and one core, is told to do as little else as can be said, and
has its answers looked at before it is measured.
"""

import contextlib
import json
import os
import pathlib
import sys
import tempfile

from tests.bench.latency import capacity, seen_at
from tests.bench.open_streams import ROOM
from tests.bench.paced import beside_peers
from tests.bench.processes import hello, router, running, upstream
from tests.bench.report import Chart, Findings, Table, Target, publish
from tests.bench.throughput import HEAD, SATURATED, rows, streams
from tests.bench.upstream import MODELS, STREAM_LENGTHS
from tests.bench.wrk import Load, Ratio, interleaved, require
from tests.support.router import free_port

ROUNDS, ROUND_S, DELAY_ROUND_S = 3, 3, 10
NGINX = """
daemon off;
worker_processes 1;
error_log stderr crit;
pid {folder}/nginx.pid;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    keepalive_requests 1000000;
    upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(backend):
    """Run nginx as a plain proxy that passes on what comes as it comes."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "nginx.conf")
        config.write_text(NGINX.format(folder=folder, backend=backend.port, port=port))
        # Its worker must be able to write below a directory that root has made.
        os.chmod(folder, 0o777)
        with running(["nginx", "-e", "stderr", "-c", str(config)], port, "/v1/models") as server:
            yield server


def vllm_router(backend, programs):
    """Run vllm-router with one thread for its work."""
    port, metrics = free_port(), free_port()
    return running(
        [f"{programs}/vllm-router", "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
         f"http://127.0.0.1:{backend.port}", "--policy", "round_robin", "--log-level", "error",
         "--prometheus-port", str(metrics), "--prometheus-host", "127.0.0.1"],
        port, "/health", patience_s=60, env={**os.environ, "TOKIO_WORKER_THREADS": "1"})


@contextlib.contextmanager
def litellm(backend, programs):
    """Run LiteLLM's proxy with one worker, without its outside calls and its log."""
    port = free_port()
    models = [{"model_name": name, "litellm_params": {
        "model": f"openai/{name}", "api_base": f"http://127.0.0.1:{backend.port}/v1",
        "api_key": "sk-of-the-benchmark"}} for name in MODELS]
    with tempfile.TemporaryDirectory() as folder:
        # YAML takes JSON.
        config = pathlib.Path(folder, "config.yaml")
        config.write_text(json.dumps({"model_list": models, "litellm_settings": {
            "telemetry": False, "num_retries": 0, "request_timeout": 60},
            # As the router: whoever comes is served, and the backend judges the token.
            "general_settings": {"dangerously_permit_weak_or_unset_master_key": True}}))
        with running(
                [f"{programs}/litellm", "--config", str(config), "--host", "127.0.0.1", "--port",
                 str(port), "--num_workers", "1", "--telemetry", "False"],
                port, "/health/liveliness", patience_s=120,
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR",
                     "LITELLM_MODE": "PRODUCTION", "DO_NOT_TRACK": "1"}) as server:
            yield server


def kinds(name, server):
    """Return the loads every peer gets."""
    return {name: Load(server, "plain"), **streams(name, server)}


def delays(servers, rate):
    """Return the table of first bytes at one rate, and server -> what each adds, ms."""
    seen = seen_at(servers, rate, DELAY_ROUND_S)
    added = {name: [seen[name]["first byte", which] - seen["direct"]["first byte", which]
                    for which in ("median", "p99")] for name in servers}
    lines = [[name, *(f"{seen[name]['first byte', which]:.2f}" for which in ("median", "p99")),
              *(f"{ms:.2f}" for ms in added[name])] for name in servers]
    table = Table(f"Time to first byte at {rate:.0f} streams a second",
                  ("ms", "median", "99 %", "added, median", "added, 99 %"), lines,
                  "Half of what LiteLLM can carry of streams of ten events 20 ms apart, Poisson "
                  "arrivals, timed from when each request was due.")
    return table, added


def judged(loads, rates, added):
    """Hold the figures against the targets."""
    def times(what, other):
        return Ratio.of(rates[f"router{what}"], rates[f"{other}{what}"])
    long, short = ", streams of 1,000", ", streams of 100"
    parts = [ours / theirs for ours, theirs in zip(added["router"], added["LiteLLM"])]
    asked = [("non-streaming: 30 times LiteLLM", times("", "LiteLLM"), 30),
             ("streams of 1,000: half of vllm-router", times(long, "vllm-router"), 0.5),
             ("streams of 100: a third of vllm-router", times(short, "vllm-router"), 1 / 3),
             ("streams of 100: 70 times LiteLLM", times(short, "LiteLLM"), 70)]
    targets = [Target(f"{says} at least", f"{seen} times", seen.median >= least)
               for says, seen, least in asked]
    targets.append(Target(
        "first byte at the same rate: adds at most a tenth of what LiteLLM adds",
        f"{parts[0]:.2f} of it at the median, {parts[1]:.2f} at 99 %", max(parts) <= 0.1))
    return targets


def charts(loads, rates, added):
    """Return the figures as bars."""
    for count in (0, *STREAM_LENGTHS):
        title = f"Events a second in streams of {count:,}" if count else "Requests a second"
        yield Chart(f"{title}, one worker", {
            name.partition(",")[0]: rates[name].answers * (load.events or 1)
            for name, load in loads.items() if load.events == count and "alone" not in name})
    yield Chart("Added to the first byte at the same rate, median ms", {
        name: median for name, (median, _) in added.items() if name != "direct"}, 2)


def measure(programs):
    """Measure all of them."""
    with (upstream() as backend, hello() as stock, router(backend) as ours,
          nginx(backend) as plain, vllm_router(backend, programs) as rust,
          litellm(backend, programs) as lite):
        servers = {"router": ours, "nginx": plain, "vllm-router": rust, "LiteLLM": lite}
        loads = {"Flask hello-world": Load(stock, "plain")}
        for name, server in [*servers.items(), ("upstream alone", backend)]:
            loads |= kinds(name, server)
        rates = interleaved(loads, ROUNDS, ROUND_S)
        # Fewer at once: it is slower, and what waits long at the end would not be counted.
        most = capacity(lite, connections=32)
        delay, added = delays({"direct": backend, **servers}, most / 2)
        threads = ", ".join(f"{name} {server.threads()}" for name, server in servers.items())
    note = (f"All on one core. Threads: {threads}, of which vllm-router was told to use one for "
            "its work. A server that uses less than its core waited for upstream or wrk. "
            f"{SATURATED}")
    return Findings(
        judged(loads, rates, added),
        [Table("Throughput", HEAD, list(rows(loads, rates, rates["Flask hello-world"])), note),
         delay], list(charts(loads, rates, added)))


def paced(programs):
    """Measure paced events of those that can carry hundreds of streams, started afresh."""
    with (upstream() as backend, router(backend, **ROOM) as ours, nginx(backend) as plain,
          vllm_router(backend, programs) as rust):
        return beside_peers(backend, {"router": ours, "nginx": plain, "vllm-router": rust})


def main():
    """Measure and publish; the argument is where the peers' programs are."""
    require("wrk", "nginx")
    programs = os.path.abspath(sys.argv[1])
    findings = measure(programs)
    findings.add(paced(programs))
    publish("peers", findings)


if __name__ == "__main__":
    main()

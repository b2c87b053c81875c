"""Requests and streamed chunks a second of one worker, beside a Flask hello-world.

Everything in one run on one machine, interleaved round by round, medians taken; processor time
is read from the system beside, since these machines are noisy.
"""

from tests.bench.processes import hello, quiet_router, router, upstream
from tests.bench.report import Chart, Findings, Table, Target
from tests.bench.upstream import STREAM_LENGTHS
from tests.bench.wrk import BIG, Load, Ratio, interleaved

ROUNDS = 5
HELLO, ALIAS, QUIET = "Flask hello-world", "router, alias, sticky", "router, logs and metrics off"
DIRECT = "router, direct"
# Of hello-world's rate.
LEAST, LEAST_BY_ALIAS = 0.60, 0.52


def streams(name, server):
    """Return the loads of streams."""
    return {f"{name}, streams of {count:,}": Load(server, f"stream-{count}", events=count)
            for count in STREAM_LENGTHS}


def requests(name, server):
    """Return the loads of large requests and answers."""
    return {f"{name}, 500 KB sent": Load(server, "plain", BIG),
            f"{name}, 500 KB answered": Load(server, "large")}


def rows(loads, rates, beside):
    """Return the table's rows: the figures, and those of `beside` as the measure."""
    for name, load in loads.items():
        rate = rates[name]
        events = f"{rate.answers * load.events:,.0f}" if load.events else ""
        yield [name, f"{rate.answers:,.0f}", events,
               f"{rate.pieces:.0f}" if load.events else "",
               f"{rate.cost_s * 1e6:,.0f}",
               f"{rate.busy:.2f}", f"{rate.answers / beside.answers:.2f}",
               f"{rate.cost_s / beside.cost_s:.2f}"]


SATURATED = (
    "The events of a stream arrive as fast as they go, ten to a write, each a chunk of its own; "
    "*came in* counts the chunks of an answer, since all that has arrived is passed on together.")
HEAD = ("one worker, 32 connections", "answers/s", "events/s", "came in", "processor µs/answer",
        "cores used", "rate, of hello's", "processor, of hello's")


def measure():
    """Measure 1 and 2, and what logs and metrics cost."""
    with (upstream() as backend, hello() as stock, router(backend) as ours,
          quiet_router(backend) as quiet):
        loads = {
            HELLO: Load(stock, "plain"), DIRECT: Load(ours, "plain"),
            ALIAS: Load(ours, "chutesai/AutoPilot"), QUIET: Load(quiet, "chutesai/AutoPilot"),
            **requests("router", ours), **streams("router", ours),
            "upstream alone": Load(backend, "plain"), **requests("upstream alone", backend),
            **streams("upstream alone", backend)}
        rates = interleaved(loads, ROUNDS)
    return judged(loads, rates)


def judged(loads, rates):
    """Hold the rates against the targets."""
    part = Ratio.of(rates[DIRECT], rates[HELLO])
    by_alias = Ratio.of(rates[ALIAS], rates[HELLO])
    kept = Ratio.of(rates[ALIAS], rates[QUIET])
    dearer = rates[ALIAS].cost_s / rates[QUIET].cost_s - 1
    return Findings(
        [Target(f"non-streaming throughput at least {LEAST:.2f} of Flask hello-world's",
                f"{part} of it", part.median >= LEAST),
         Target(f"by the alias, which ranks, remembers and rewrites, at least {LEAST_BY_ALIAS:.2f}",
                f"{by_alias} of it", by_alias.median >= LEAST_BY_ALIAS),
         Target("everything on within 15 % of the throughput with logs and metrics off",
                f"{kept} of it; {dearer:.0%} more processor time", kept.median >= 0.85)],
        [Table("Throughput", HEAD, list(rows(loads, rates, rates[HELLO])),
               "Requests and answers are of 1 KB where nothing else is said. "
               f"{SATURATED} Upstream and wrk share the cores that the server does not have, so "
               "the upstream's own rows are a lower bound of what it can do.")],
        [Chart("Requests a second, one worker, 1 KB", {
            name: rates[name].answers for name in (HELLO, DIRECT, ALIAS, QUIET)}),
         Chart("Streamed events a second, one worker", {
             name: rates[name].answers * load.events for name, load in loads.items()
             if load.events and name.startswith("router")})])

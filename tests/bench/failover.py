"""What failover adds to a request: the first of two models fails, and the second one answers.

One client on one connection asks one thing after another, each time as somebody else, so that no
sticky choice spares it the model that fails. Requests go in groups of five, of which at most the
first one fails: of more, failover has a budget. The processor time is that of a group beside that
of one without a failure, since a request leaves something to do after its answer. All models share
one backend: a connection that is refused is a failure of the door, which is tried once more and
refuses again. That second try is what is measured of it.
"""

import dataclasses
import socket
import statistics
import time

from tests.bench.processes import beside, router, upstream
from tests.bench.report import Chart, Findings, Table
from tests.bench.wrk import Load, exchange
from tests.support.router import DEADLINE_S, free_port

ROUNDS, HANGING_ROUNDS, GROUP, DEADLINE_MS = 1_000, 100, 5, 250
# A model that has just failed would else be tried last.
SETTINGS = {"COOLDOWN_SECS": "0"}
HURRIED = {**SETTINGS, "UPSTREAM_HEADER_TIMEOUT_MS": str(DEADLINE_MS),
           "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS": str(DEADLINE_MS)}
# The second model of the one is not tried; the other is a list of one.
ANSWERED, ALONE = "plain,large", "plain,"
AT_ONCE = {"a 503": "busy,plain", "a 404 `model not found`": "gone,plain",
           "an end before the headers": "lost,plain"}
HANGING = "hangs,plain"
USUAL, REFUSED = "no failure", "a list of one, connection refused: a 502"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What requests of one kind cost.

    median_ms, p99_ms  until the whole answer was there
    group_us  processor time of the router for a group that begins with one, median
    """

    median_ms: float
    p99_ms: float
    group_us: float

    @classmethod
    def of(cls, seen):
        """Return the cost of requests of which each took (seconds, the group's processor s)."""
        took_s, spent_s = zip(*seen)
        cuts = statistics.quantiles(took_s, n=100)
        return cls(cuts[49] * 1e3, cuts[98] * 1e3, statistics.median(spent_s) * 1e6)

    def less(self, other, waited_ms=0):
        """Return what it costs more than another, without a time that it had to wait."""
        return Cost(self.median_ms - other.median_ms - waited_ms,
                    self.p99_ms - other.p99_ms - waited_ms, self.group_us - other.group_us)


def costs(server, usual, others, rounds, status=200):
    """Send groups in turn, of usual requests and of one other and then usual ones.

    usual, others  what the field `model` says
    status         that every request gets
    Returns        what the field says -> Cost
    """
    bodies = {model: Load(server, model).body() for model in (usual, *others)}
    seen, asked = {model: [] for model in bodies}, 0
    with beside(), socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as sock:
        for first in list(bodies) * rounds:
            spent_s, took_s = server.processor_s(), []
            for model in (first, *[usual] * (GROUP - 1)):
                began, asked = time.perf_counter(), asked + 1
                answer = exchange(sock, bodies[model], f"sk-{asked}")
                took_s.append(time.perf_counter() - began)
                assert answer.startswith(b"HTTP/1.1 %d " % status), (model, answer[:500])
            seen[first].append((took_s[0], server.processor_s() - spent_s))
    return {model: Cost.of(many) for model, many in seen.items()}


def measured(backend):
    """Return what requests cost that others are compared with, and what each failure adds."""
    with router(backend, **SETTINGS) as ours:
        quick = costs(ours, ANSWERED, AT_ONCE.values(), ROUNDS)
    with router(backend, **HURRIED) as ours:
        late = costs(ours, ANSWERED, [HANGING], HANGING_ROUNDS)
    nobody = f"http://127.0.0.1:{free_port()}"
    with router(backend, **SETTINGS, BACKEND_BASE_URL=nobody) as ours:
        shut = costs(ours, ALONE, [ANSWERED], ROUNDS, 502)
    return {USUAL: quick[ANSWERED], REFUSED: shut[ALONE]}, {
        **{name: quick[model].less(quick[ANSWERED]) for name, model in AT_ONCE.items()},
        "silence, beyond the header deadline": late[HANGING].less(late[ANSWERED], DEADLINE_MS),
        "a connection refused once more": shut[ANSWERED].less(shut[ALONE])}


def measure():
    """Measure what each kind of failure adds to the request that meets it."""
    with upstream() as backend:
        whole, added = measured(backend)
    rows = [[name, f"{one.median_ms:.2f}", f"{one.p99_ms:.2f}", f"{one.group_us / GROUP:,.0f}"]
            for name, one in whole.items()]
    rows += [[f"added by {name}", f"{one.median_ms:+.2f}", f"{one.p99_ms:+.2f}",
              f"{one.group_us:+,.0f}"] for name, one in added.items()]
    note = ("A list of two models, of which the first one fails. A 503 also costs its connection, "
            "since nobody reads its body; a 404 is read. A request whose connection ends before "
            "the headers came on a pooled one, and is sent once more on a fresh one before the "
            f"second model has its turn. The header deadline is {DEADLINE_MS} ms here; the "
            "processor time of a silence has in it what the router does at rest for so long. A "
            "refused connection is a failure of the door that all models share: it is tried once "
            "more, and the client gets a 502.")
    return Findings(
        [], [Table("Failover", ("a request at a time", "median, ms", "99 %, ms", "processor µs"),
                   rows, note)],
        [Chart("Added by a failover, median ms", {
            f"router, {name}": one.median_ms for name, one in added.items()}, 2)])

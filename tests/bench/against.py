"""Today's router beside that of another commit, all in one run: `make bench-against`.

The commit's `app/` and `gunicorn.conf.py` are run from a directory of their own, by the programs
of its `requirements.txt`; load, upstream and settings are today's. Both routers have the same
core, and their rounds are interleaved. Publishes nothing.
"""

import argparse
import contextlib
import functools
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile

from tests.bench.paced import BESIDE, held
from tests.bench.processes import router, upstream
from tests.bench.report import Table, where
from tests.bench.upstream import STREAM_LENGTHS
from tests.bench.wrk import Load, Ratio, in_turn, prepared, require
from tests.support.router import ROOT

ROUNDS = 5
LOADS = {"direct": {"model": "plain"}, "alias": {"model": "chutesai/AutoPilot"},
         **{f"stream-{count}": {"model": f"stream-{count}", "events": count}
            for count in STREAM_LENGTHS}}
ROWS = (*LOADS, "paced")
NOTE = ("Figures of today by those of the commit: more than 1 is a higher rate, or more processor "
        "time. An answer of `paced` is an event of {} streams with 25 a second each, whose rate is "
        "given; `stream-N` is N events as fast as they go, ten to a write.").format(BESIDE)


@contextlib.contextmanager
def tree_of(commit):
    """Yield a directory with what a commit's router is made of."""
    packed = subprocess.run(["git", "archive", commit, "app", "gunicorn.conf.py",
                             "requirements.txt"], cwd=ROOT, stdout=subprocess.PIPE)
    if packed.returncode:
        sys.exit(f"no router in {commit}")
    with tempfile.TemporaryDirectory() as folder:
        tarfile.open(fileobj=io.BytesIO(packed.stdout)).extractall(folder, filter="data")
        yield pathlib.Path(folder)


def python_of(tree):
    """Return the Python with what a tree requires; installed there if it is not what is here."""
    required = tree / "requirements.txt"
    if required.read_text() == (ROOT / required.name).read_text():
        return sys.executable
    subprocess.run([sys.executable, "-m", "venv", tree / "venv"], check=True)
    python = tree / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                    "-r", required], check=True)
    return str(python)


def runner(name, server):
    """Return what runs one round of a row."""
    if name == "paced":
        return functools.partial(held, server, BESIDE)
    return prepared(Load(server, **LOADS[name]))


def compared(then, today, names, rounds):
    """Return the table's rows."""
    rates = in_turn({(name, server): runner(name, server) for name in names
                     for server in (then, today)}, rounds)
    for name in names:
        old, new = rates[name, then], rates[name, today]
        yield [name, Ratio.of(new, old), Ratio.of(new, old, "cost_s"),
               *(f"{rate.answers:,.0f}" for rate in (old, new)),
               *(f"{rate.cost_s * 1e6:,.1f}" for rate in (old, new))]


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="tests.bench.against")
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("rows", nargs="*", default=ROWS, help=f"of {', '.join(ROWS)}")
    asked = parser.parse_intermixed_args()
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(f"no row {', '.join(unknown)}: there are {', '.join(ROWS)}")
    require("wrk")
    with (tree_of(asked.commit) as tree, upstream() as backend,
          router(backend, tree=tree, python=python_of(tree)) as then, router(backend) as today):
        rows = list(compared(then, today, asked.rows, asked.rounds))
    head = (f"today / {asked.commit}", "rate", "processor time", "answers/s, then", "today",
            "µs/answer, then", "today")
    print(Table(f"Against {asked.commit}", head, rows, f"{NOTE} {where()}").markdown())


if __name__ == "__main__":
    main()

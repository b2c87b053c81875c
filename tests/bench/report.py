"""What the measures found, and how it is put into this directory's README."""

import dataclasses
import datetime
import os
import pathlib
import platform
import re
import subprocess
from importlib import metadata

from tests.bench.picture import draw

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Target:
    """One promise: what is asked, what was seen, and whether that will do."""

    asked: str
    seen: str
    met: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a title; the first column is text, the others figures.

    note  a sentence or two below it
    """

    title: str
    head: tuple
    rows: list
    note: str = ""

    def markdown(self):
        """Return it as Markdown."""
        lines = [self.head, ["---"] + ["---:"] * (len(self.head) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
        return f"### {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")


@dataclasses.dataclass(frozen=True)
class Chart:
    """Bars side by side: label -> figure, all of one unit, which the title names."""

    title: str
    bars: dict
    digits: int = 0


@dataclasses.dataclass
class Findings:
    """What one measure, or all of them, found."""

    targets: list = dataclasses.field(default_factory=list)
    tables: list = dataclasses.field(default_factory=list)
    charts: list = dataclasses.field(default_factory=list)

    def add(self, other):
        """Take in another measure's findings."""
        self.targets += other.targets
        self.tables += other.tables
        self.charts += other.charts

    def markdown(self, picture):
        """Return targets, picture and tables as Markdown."""
        verdicts = [[t.asked, t.seen, "met" if t.met else "**not met**"] for t in self.targets]
        targets = Table("Targets", ("asked", "seen", ""), verdicts, where())
        return "\n".join([targets.markdown(), f"![The figures as bars]({picture})\n",
                          *(table.markdown() for table in self.tables)])


def where():
    """Return what the figures depend on beside the code."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True,
                            capture_output=True).stdout.strip()
    versions = ", ".join(f"{name} {metadata.version(name)}"
                         for name in ("gunicorn", "gevent", "flask", "urllib3"))
    return (f"{datetime.date.today()}, at commit {commit}. Python {platform.python_version()}, "
            f"{versions}; {len(os.sched_getaffinity(0))} cores, one of them for the server "
            "measured.")


def publish(section, findings):
    """Put the findings between the README's markers of a section, and its picture beside it."""
    picture = HERE / f"{section}.svg"
    picture.write_text(draw(findings.charts))
    readme = HERE / "README.md"
    begins, ends = f"<!-- {section} begins -->", f"<!-- {section} ends -->"
    text = findings.markdown(picture.name)
    readme.write_text(re.sub(
        f"{begins}.*{ends}", lambda _: f"{begins}\n{text}{ends}", readme.read_text(),
        flags=re.DOTALL))
    print(text)

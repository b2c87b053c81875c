"""README and specs against the code and the tests."""

import dataclasses
import importlib
import json
import pathlib
import pkgutil
import re

from prometheus_client import Counter, Gauge, Histogram

import app
from app import errors, exposition, metrics
from app.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[1]
RULE = re.compile(r"\b(00\d-[RW]\d+)\b")
SPECS = {path.parent.name[:3]: path for path in (ROOT / "specs").glob("00*/spec.md")}


def rules():
    """Return every rule id the specs define."""
    return {f"{number}-{rule}" for number, path in SPECS.items()
            for rule in re.findall(r"^- \*\*([RW]\d+)\*\* ", path.read_text(), re.MULTILINE)}


def cited():
    """Return every rule id cited in a test's docstring, with the file."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for docstring in re.findall(r'"""(.*?)"""', path.read_text(), re.DOTALL):
            for rule in RULE.findall(docstring):
                yield rule, path.name


def test_every_rule_is_cited_by_a_test_and_every_citation_names_a_rule():
    """001-R11"""
    citations = dict(cited())
    assert rules() - citations.keys() == set()
    assert citations.keys() - rules() == set()


def test_every_source_named_in_the_code_exists():
    """001-R11"""
    for path in (ROOT / "app").rglob("*.py"):
        for number, listed in re.findall(r"specs/(00\d) ((?:[RW]\d+(?:-[RW]\d+)?(?:, )?)+)",
                                         path.read_text()):
            for rule in re.findall(r"[RW]\d+", listed):
                assert f"{number}-{rule}" in rules(), f"{path.name} cites {number}-{rule}"


def test_the_coverage_table_names_every_rule_and_only_what_exists():
    """001-R11"""
    text = (ROOT / "specs" / "COVERAGE.md").read_text()
    assert set(RULE.findall(text)) == rules()
    for name in re.findall(r"tests/[\w/]+\.py", text):
        assert (ROOT / name).is_file(), name
    for row in re.findall(r"^\| .+ \|$", text, re.MULTILINE)[1:]:
        where = row.split("|")
        for rule in RULE.findall(where[2]):
            files = re.findall(r"tests/[\w/]+\.py", where[3])
            assert any(rule in (ROOT / name).read_text() for name in files), f"{rule} in {files}"


def test_the_tree_of_exceptions_shows_each_with_its_module_and_no_other():
    """001-R11"""
    shown = {(name, module or "errors")
             for name, module in re.findall(r"\+-- (\w+)  +(?:\(([\w.]+)\))?", errors.__doc__)}
    defined = set()
    for module in pkgutil.walk_packages(app.__path__, "app."):
        # The entry point would build an application.
        if module.name != "app.wsgi":
            defined |= {(name, module.name.removeprefix("app."))
                        for name, thing in vars(importlib.import_module(module.name)).items()
                        if isinstance(thing, type) and issubclass(thing, BaseException)
                        and thing.__module__ == module.name}
    assert shown == defined


def test_every_row_of_the_fault_table_has_a_case_and_every_case_a_row():
    """006-W13"""
    rows = re.findall(r"^\| (F\d+) \|", SPECS["006"].read_text(), re.MULTILINE)
    cases = "".join(path.read_text() for path in (ROOT / "tests" / "wire").glob("test_*.py"))
    assert len(rows) == len(set(rows)) >= 24
    assert set(rows) == set(re.findall(r"(?:\b|_)(F\d+)(?=[ _])", cases))


def test_the_readmes_table_of_variables_is_the_code():
    """001-R2"""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `([A-Z_\d]+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    declared = [(f.metadata["name"], f"`{f.metadata['default']}`" if f.metadata["default"]
                 else "empty", f.metadata["says"]) for f in dataclasses.fields(Config)]
    assert rows == declared


def test_the_example_environment_names_every_variable_with_its_default():
    """001-R2"""
    lines = (ROOT / ".env.example").read_text().splitlines()
    given = [line.removeprefix("#") for line in lines if "=" in line]
    assert given == [f"{f.metadata['name']}={f.metadata['default']}"
                     for f in dataclasses.fields(Config)]


def test_the_readme_names_files_and_targets_that_exist():
    """001-R11, 001-R12"""
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`((?:app|tests|specs|deploy)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readmes_table_of_clients_has_the_versions_that_are_tested():
    """001-R11"""
    clients = ROOT / "tests" / "clients"
    pinned = set(re.findall(r"^([\w-]+)==(.+)$", (clients / "requirements.txt").read_text(),
                            re.MULTILINE))
    pinned |= json.loads((clients / "package.json").read_text())["dependencies"].items()
    rows = re.findall(r"^\| (`.*) \| ([\d., ]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [each for names, versions in rows
             for each in zip(re.findall(r"`(.+?)`", names), versions.split(", "), strict=True)]
    assert len(shown) == 6 and set(shown) <= pinned


def test_the_readmes_table_of_metrics_is_the_code():
    """001-R13"""
    section = (ROOT / "README.md").read_text().partition("## Metrics")[2]
    cells = [row.split("|")[1] for row in re.findall(r"^\| `.*", section, re.MULTILINE)]
    shown = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert shown == metric_names()


def metric_names():
    """Return every metric's name without its prefix, as a scrape has it."""
    declared = [vars(metrics)[name] for name in vars(metrics)]
    names = {d._name + ("_total" if isinstance(d, Counter) else "") for d in declared
             if isinstance(d, (Counter, Gauge, Histogram))}
    ages = {taken: shown for taken, (shown, *_) in exposition.AGE_OF.items()}
    names.add(exposition.MODEL_COOLING)
    return {ages.get(name, name).removeprefix("chutes_autopilot_") for name in names}

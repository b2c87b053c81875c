"""The import rule, and the size of things."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Room -> the rooms it may import beside itself; each stands above its own line.
ROOMS = {
    "errors": "", "client": "", "heartbeat": "",
    "eventloop": "", "proxies": "", "log_writer": "", "files": "", "schema_fields": "",
    "config_parsers": "files",
    "dialing": "eventloop",
    "routing": "errors config_parsers",
    "alias_file": "config_parsers files routing schema_fields",
    "config": "config_parsers proxies alias_file",
    "logs": "log_writer",
    "shared": "logs",
    "metric_files": "logs shared",
    "metrics": "config eventloop logs metric_files",
    "exposition": "metrics",
    "hang_ups": "eventloop",
    "next_head": "errors",
    "client_writes": "dialing eventloop",
    "answer_writer": "",
    "client_socket": "client client_writes errors eventloop hang_ups next_head",
    "request_head": "errors", "refusals": "errors",
    "inflight": "errors eventloop",
    "draining": "client_socket inflight",
    "seen": "routing shared metrics",
    "journal": "metrics routing seen",
    "open_requests": "shared routing",
    "page": "config routing seen",
    "sticky": "dialing eventloop logs metrics shared routing",
    "cooling": "metrics shared routing",
    "upstream": "errors client eventloop dialing logs metrics journal routing",
    "control": "errors eventloop dialing files logs metrics routing schema_fields",
    "routes": "errors client config logs metrics exposition journal eventloop inflight routing "
              "open_requests sticky cooling upstream seen page",
    "factory": "dialing config eventloop shared metrics journal inflight routing open_requests "
               "sticky cooling upstream control routes seen",
    "wsgi": "config factory",
    "master": "",
    "worker": "errors config eventloop dialing heartbeat logs log_writer hang_ups client_socket "
              "answer_writer next_head draining refusals request_head routing",
}


def modules():
    for path in sorted((ROOT / "app").rglob("*.py")):
        if path != ROOT / "app" / "__init__.py":
            yield path, ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ([f"app.{alias.name}" for alias in node.names]
                        if node.module == "app" else [node.module])


def room(name):
    return name.split(".")[1].removesuffix(".py")


def test_a_room_imports_only_rooms_that_it_may():
    """001-R11"""
    for path, tree in modules():
        here = path.relative_to(ROOT / "app").parts[0].removesuffix(".py")
        for name in imported(tree):
            there = room(name) if name.startswith("app.") else here
            assert there in (here, *ROOMS[here].split()), f"{path} imports {name}"


def test_no_room_may_import_one_below_it():
    """001-R11"""
    order = list(ROOMS)
    for here, may in ROOMS.items():
        assert all(order.index(there) < order.index(here) for there in may.split()), here


def importers(package):
    return {str(path.relative_to(ROOT)) for path, tree in modules()
            if any(name.split(".")[0] == package for name in imported(tree))}


def test_each_library_has_its_door():
    """001-R11"""
    assert importers("requests") == {"app/upstream/transport.py", "app/control/feed_client.py"}
    assert importers("urllib3") == {"app/upstream/transport.py", "app/upstream/endpoint.py",
                                    "app/dialing/connectors.py"}
    assert importers("gevent") == {"app/eventloop.py", "app/client_writes.py"}
    assert importers("gunicorn") == {
        "app/worker.py", "app/answer_writer.py", "app/master.py", "app/heartbeat.py",
        "app/refusals.py"}
    assert importers("prometheus_client") == {
        "app/metrics.py", "app/metric_files.py", "app/exposition.py"}
    assert importers("redis") == {"app/sticky/redis.py", "app/sticky/redis_connections.py"}
    assert importers("jinja2") == {"app/page/document.py"}
    assert importers("sqlite3") == {"app/shared/sqlite.py"}
    assert importers("marshmallow") == {
        "app/control/schemas.py", "app/alias_file.py", "app/schema_fields.py"}


def test_pure_decisions_do_no_io_and_have_no_clock():
    """001-R11"""
    for path in (ROOT / "app" / "routing").glob("*.py"):
        assert not set(imported(ast.parse(path.read_text()))) & {
            "time", "socket", "flask", "random", "logging", "gevent"}, path


def test_the_environment_is_read_in_one_place():
    """001-R2"""
    readers = {path.name for path, tree in modules() for node in ast.walk(tree)
               if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
               and getattr(node.value, "id", "") == "os"}
    assert readers == {"config.py"}


def test_no_function_is_longer_than_a_screen():
    """001-R11"""
    long = [(path.name, node.name) for path, tree in modules() for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60]
    assert not long


def test_wire_tests_import_nothing_of_the_app():
    """001-R11"""
    for folder in ("wire", "support", "clients", "clients/programs"):
        for path in (ROOT / "tests" / folder).glob("*.py"):
            assert not any(name.split(".")[0] == "app"
                           for name in imported(ast.parse(path.read_text()))), path


def test_redis_is_loaded_only_by_a_worker_that_uses_it():
    """005-R9"""
    script = ("import sys; from app.config import load_config; from app.factory import create_app;"
              "create_app(load_config({})); print('redis' in sys.modules)")
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                           check=True)
    assert shown.stdout.split() == ["False"]

"""What is in deploy/, read by the tools it is made for and held against the code."""

import dataclasses
import importlib.metadata
import ipaddress
import json
import pathlib
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app import draining
from app.alias_file import read_aliases
from app.config import Config, load_config
from app.routing.aliases import BUILT_IN
from tests.support.image import pins
from tests.test_docs import metric_names

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
VARIABLES = {field.metadata["name"] for field in dataclasses.fields(Config)}
HISTOGRAM_PARTS = re.compile(r"_(bucket|sum|count)$")


def run(*command, **options):
    """Run a tool; fail with what it says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.3", "3.14.0"])
def test_every_package_that_a_pinned_one_needs_is_pinned(python):
    """007-R8: also where an older Python needs more."""
    environment = {"python_full_version": python,
                   "python_version": ".".join(python.split(".")[:2]), "extra": ""}
    taken = {canonicalize_name(pin.name) for pin in pins()
             if pin.marker is None or pin.marker.evaluate(environment)}
    for name in taken - {"async-timeout"}:
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(environment):
                assert canonicalize_name(needed.name) in taken, f"{name} needs {line}"
    for pin in pins():
        assert [part.operator for part in pin.specifier] == ["=="], pin


@pytest.fixture(scope="module")
def unit():
    """Return the systemd unit's (section, key) -> values."""
    settings, section = {}, ""
    for line in (DEPLOY / "systemd" / "chutes-router.service").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault((section, key), []).append(value)
    return settings


@pytest.fixture(scope="module")
def systemd_root(tmp_path_factory, unit):
    """A root directory that holds what the unit names."""
    root = tmp_path_factory.mktemp("root")
    for place in ("etc/systemd/system", "opt/chutes-router/.venv/bin", "bin", "usr/lib"):
        (root / place).mkdir(parents=True)
    shutil.copy(DEPLOY / "systemd" / "chutes-router.service", root / "etc/systemd/system")
    for command in (*unit["Service", "ExecStart"], *unit["Service", "ExecReload"]):
        program = root / command.split()[0].lstrip("/")
        program.touch()
        program.chmod(0o755)
    for target in ("multi-user", "network-online", "sysinit", "basic", "shutdown"):
        (root / f"etc/systemd/system/{target}.target").write_text("[Unit]\n")
    return root


def test_systemd_takes_the_unit_without_a_word(systemd_root):
    """007-R7"""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={systemd_root}",
         "chutes-router.service"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_leaves_little_open(systemd_root):
    """007-R7"""
    run("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager",
        f"--root={systemd_root}", "chutes-router.service")


def test_the_unit_waits_for_the_drain(unit):
    """007-R7, 007-R3"""
    assert int(unit["Service", "TimeoutStopSec"][0]) > load_config().graceful_timeout_secs
    assert unit["Service", "KillMode"] == ["mixed"]
    check, reload = unit["Service", "ExecReload"]
    assert check.endswith("gunicorn --check-config") and reload == '/bin/sh -c "kill -HUP $MAINPID"'


def test_the_unit_keeps_prompts_out_of_core_files_and_shared_memory_to_itself(unit):
    """007-R7"""
    assert unit["Service", "LimitCORE"] == ["0"]
    [mount] = unit["Service", "TemporaryFileSystem"]
    place, _, options = mount.partition(":")
    # The unit's user is not root, and its workers share a directory there.
    assert place == "/dev/shm" and {"mode=1777", "size=128M"} <= set(options.split(","))
    # Of both addresses, and as many to the upstream.
    assert int(unit["Service", "LimitNOFILE"][0]) > 3 * load_config().worker_connections + 200


def environment_of(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines()
                if line and not line.startswith("#"))


def test_the_environment_file_is_one_the_router_takes(monkeypatch):
    """007-R7"""
    given = environment_of(DEPLOY / "systemd" / "chutes-router.env")
    assert given.pop("ALIASES_FILE") == "/etc/chutes-router-aliases.toml"
    assert given.pop("STATE_DIR") == "/var/lib/chutes-router"
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert given.keys() <= VARIABLES
    load_config()


def test_the_compose_file_names_what_there_is():
    """007-R8"""
    services = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]
    router = services["router"]
    assert router["environment"].keys() <= VARIABLES
    assert router["read_only"] and router["cap_drop"] == ["ALL"]
    assert int(router["stop_grace_period"].rstrip("s")) > load_config().graceful_timeout_secs
    folder = DEPLOY / "docker"
    assert (folder / router["build"]["context"] / router["build"]["dockerfile"]).is_file()
    for mounted in services["nginx"]["volumes"]:
        assert (folder / mounted.split(":")[0]).is_file()
    # A mounted file would stay the old one when an editor puts a new one in its place.
    [mounted] = router["volumes"]
    source, target, _ = mounted.split(":")
    aliases = pathlib.Path(router["environment"]["ALIASES_FILE"])
    assert aliases.parent == pathlib.Path(target) and (folder / source / aliases.name).is_file()
    assert services["nginx"]["stop_grace_period"] == router["stop_grace_period"]
    assert services["redis"]["command"][:2] == [
        "redis-server", "--requirepass"] and "REDIS_PASSWORD" in router["environment"]["STICKY_URL"]
    site = (DEPLOY / "nginx" / "chutes-router.conf").read_text()
    assert site.count("127.0.0.1:8080") == 1 and "127.0.0.1:8080" in services["nginx"]["command"][2]


def test_every_image_is_named_by_an_exact_tag():
    """007-R8"""
    composed = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]
    [base] = re.findall(r"^ARG BASE=(\S+)$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.M)
    taken = [base, *(service["image"] for service in composed.values() if "image" in service)]
    assert len(taken) == 3
    for image in taken:
        assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+(-[a-z-]+)?", image), image


def test_the_image_gets_what_its_steps_copy():
    """007-R8"""
    let_in = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()
              if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (DEPLOY / "docker" / "Dockerfile").read_text(),
                        re.MULTILINE)
    assert {name.rstrip("/") for name in copied} == let_in


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Return kind -> object, of the base with the ServiceMonitor added by an overlay."""
    return kustomized(tmp_path_factory.mktemp("overlay"), "servicemonitor")


def kustomized(overlay, *components):
    """Return kind -> object, of an overlay with components on the base."""
    shutil.copytree(DEPLOY / "kubernetes", overlay / "kubernetes")
    (overlay / "kustomization.yaml").write_text(json.dumps({
        "resources": ["kubernetes/base"],
        "components": [f"kubernetes/{name}" for name in components]}))
    objects = list(yaml.safe_load_all(run("kubectl", "kustomize", str(overlay))))
    # Of the two ConfigMaps one is a file.
    kinds = {"aliases" if "aliases.toml" in thing.get("data", {}) else thing["kind"]: thing
             for thing in objects}
    assert len(kinds) == len(objects)
    return kinds


def test_kubernetes_takes_every_manifest(manifests):
    """007-R9"""
    validated = {kind for kind, thing in manifests.items()
                 if "coreos" not in thing["apiVersion"]}
    assert validated == {"Deployment", "Service", "ConfigMap", "aliases", "PodDisruptionBudget",
                         "HorizontalPodAutoscaler", "NetworkPolicy"}
    validate(manifests[kind] for kind in validated)


def validate(objects):
    for thing in objects:
        for version in ("1.29", "1.37"):
            kubernetes_validate.validate(thing, version, strict=True)


def test_the_component_for_ipv6_listens_on_both_families(tmp_path, manifests):
    """007-R9"""
    changed = kustomized(tmp_path, "ipv6")
    validate(changed.values())
    settings = changed["ConfigMap"]["data"]
    assert settings.items() - manifests["ConfigMap"]["data"].items() == {
        ("LISTEN_ADDR", "[::]:8080"), ("HEALTH_LISTEN_ADDR", "[::]:8081")}
    assert changed["Service"]["spec"]["ipFamilyPolicy"] == "PreferDualStack"
    [container] = changed["Deployment"]["spec"]["template"]["spec"]["containers"]
    # The kubelet asks the pod's own address, of whatever family.
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "host" not in container[probe]["httpGet"]


def test_the_manifests_agree_with_each_other(manifests):
    """007-R9, 007-R2"""
    pod = manifests["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = manifests["ConfigMap"]["data"]
    assert settings.keys() <= VARIABLES
    assert settings["LISTEN_ADDR"] == f"0.0.0.0:{ports['http']}"
    assert settings["HEALTH_LISTEN_ADDR"] == f"0.0.0.0:{ports['health']}"
    probes = {name: container[name]["httpGet"] for name in (
        "startupProbe", "livenessProbe", "readinessProbe")}
    assert [(probe["path"], probe["port"]) for probe in probes.values()] == [
        ("/healthz", "health"), ("/healthz", "health"), ("/readyz", "health")]
    assert {port["targetPort"] for port in manifests["Service"]["spec"]["ports"]} == set(ports)
    assert container["envFrom"][0]["configMapRef"]["name"] == \
        manifests["ConfigMap"]["metadata"]["name"]
    label = {"app.kubernetes.io/name": "chutes-router"}
    for chosen in (manifests["Deployment"]["spec"]["selector"],
                   manifests["PodDisruptionBudget"]["spec"]["selector"],
                   manifests["NetworkPolicy"]["spec"]["podSelector"],
                   manifests["ServiceMonitor"]["spec"]["selector"]):
        assert chosen == {"matchLabels": label}
    assert manifests["Service"]["spec"]["selector"] == label == pod["metadata"]["labels"]
    [endpoint] = manifests["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("health", "/metrics")
    assert label.items() <= manifests["Service"]["metadata"]["labels"].items()


def test_a_pod_reads_the_file_of_aliases_that_it_is_given(manifests):
    """007-R9, 002-R50"""
    [volume] = [volume for volume in manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
                if volume["name"] == "aliases"]
    [container] = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert not [mount for mount in container["volumeMounts"] if "subPath" in mount]
    assert volume["configMap"]["name"] == manifests["aliases"]["metadata"]["name"]
    given = DEPLOY / "aliases" / "aliases.toml"
    assert manifests["aliases"]["data"] == {"aliases.toml": given.read_text()}
    assert manifests["ConfigMap"]["data"]["ALIASES_FILE"].endswith("/aliases.toml")


def test_the_file_of_aliases_adds_nothing_until_a_use_is_uncommented():
    """002-R50"""
    given = DEPLOY / "aliases" / "aliases.toml"
    assert read_aliases(str(given)).aliases == BUILT_IN
    lines = [line.removeprefix("# ") for line in given.read_text().splitlines()
             if re.match(r'# (\[\[|\w+ = )', line)]
    aliases = read_aliases("uncommented", "\n".join(lines)).aliases
    assert aliases.keys() == BUILT_IN.keys() | {"gpt-4o", "confidential"}
    assert aliases["chutesai/AutoPilot"].tiers[1] == ("*",)
    assert aliases["confidential"].confidential and not aliases["gpt-4o"].confidential


def test_a_pod_has_time_for_its_sleep_and_its_drain(manifests):
    """007-R9, 007-R3"""
    spec = manifests["Deployment"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    grace = int(manifests["ConfigMap"]["data"]["GRACEFUL_TIMEOUT_SECS"])
    assert spec["terminationGracePeriodSeconds"] >= int(seconds) + grace + 5


def test_a_pod_runs_restricted_on_a_read_only_root(manifests):
    """007-R9: what the restricted pod security standard asks for, and the read-only root."""
    spec = manifests["Deployment"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"USER {spec['securityContext']['runAsUser']}:" in (
        DEPLOY / "docker" / "Dockerfile").read_text()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]}}
    settings = manifests["ConfigMap"]["data"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        "/tmp", "/dev/shm", settings["STATE_DIR"], str(
            pathlib.Path(settings["ALIASES_FILE"]).parent)}
    [memory] = [volume["emptyDir"] for volume in spec["volumes"]
                if volume["name"] == "shared-memory"]
    assert memory == {"medium": "Memory", "sizeLimit": "128Mi"}


def matches(selector, labels):
    return selector["matchLabels"].items() <= labels.items()


def admitted(peers, namespace, pod, own="llm"):
    """Return whether a network policy's peers select a pod in a namespace, both by labels."""
    for peer in peers:
        inside = matches(peer["namespaceSelector"], namespace) if "namespaceSelector" in peer \
            else namespace["kubernetes.io/metadata.name"] == own
        if inside and ("podSelector" not in peer or matches(peer["podSelector"], pod)):
            return True
    return False


def test_the_network_policy_lets_in_labelled_pods_of_known_namespaces_only(manifests):
    """007-R9"""
    service, probes = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert [port["port"] for port in service["ports"]] == ["http"]
    assert [port["port"] for port in probes["ports"]] == ["health"]
    client, nobody = {"chutes-router-client": "true"}, {"app": "other"}
    own, foreign, monitoring = ({"kubernetes.io/metadata.name": name} for name in (
        "llm", "foreign", "monitoring"))
    known = {**foreign, "chutes-router-clients": "true"}
    assert admitted(service["from"], own, client) and admitted(service["from"], known, client)
    for namespace, pod in ((own, nobody), (known, nobody), (foreign, client), (monitoring, client)):
        assert not admitted(service["from"], namespace, pod)
    assert admitted(probes["from"], monitoring, nobody)
    assert not admitted(probes["from"], own, client)


def test_the_network_policy_lets_out_to_names_redis_and_the_world_outside_only(manifests):
    """007-R9"""
    names, backend, redis = manifests["NetworkPolicy"]["spec"]["egress"]
    assert {(port["protocol"], port["port"]) for port in names["ports"]} == {
        ("UDP", 53), ("TCP", 53)}
    system, own = ({"kubernetes.io/metadata.name": name} for name in ("kube-system", "llm"))
    assert admitted(names["to"], system, {"k8s-app": "kube-dns"})
    assert not admitted(names["to"], system, {"k8s-app": "other"})
    assert not admitted(names["to"], own, {"k8s-app": "kube-dns"})
    assert [port["port"] for port in backend["ports"]] == [443]
    blocks = [peer["ipBlock"] for peer in backend["to"]]

    def reached(address):
        address = ipaddress.ip_address(address)
        return any(address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(part) for part in block["except"]) for block in blocks)

    # Documentation's own addresses stand for the world's; 64:ff9b:: leads there from IPv6 alone.
    assert all(map(reached, ("203.0.113.1", "2001:db8::1", "64:ff9b::203.0.113.1")))
    assert not any(map(reached, (
        "10.0.0.1", "172.20.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "127.0.0.1",
        "::1", "fd00:ec2::254", "fe80::1")))
    assert [port["port"] for port in redis["ports"]] == [6379]
    assert admitted(redis["to"], own, {"app.kubernetes.io/name": "redis"})
    assert not admitted(redis["to"], system, {"app.kubernetes.io/name": "redis"})


def test_the_autoscaler_scales_the_deployment(manifests):
    """007-R9"""
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (
        "Deployment", manifests["Deployment"]["metadata"]["name"])


def test_the_alert_rules_hold_their_cases():
    """007-R10"""
    folder = DEPLOY / "prometheus"
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", "alerts.yml", cwd=folder)
    run("promtool", "check", "config", "prometheus.yml", cwd=folder)
    run("promtool", "test", "rules", "alerts_test.yml", cwd=folder)
    [group] = yaml.safe_load((folder / "alerts.yml").read_text())["groups"]
    named = {rule["alert"] for rule in group["rules"]}
    cases = yaml.safe_load((folder / "alerts_test.yml").read_text())["tests"]
    for case in cases[:2]:
        assert {test["alertname"] for test in case["alert_rule_test"]} == named


def metrics_in(text):
    """Return the names of the router's metrics in PromQL, without prefix and histogram parts."""
    return {HISTOGRAM_PARTS.sub("", name) for name in re.findall(r"chutes_autopilot_(\w+)", text)}


@pytest.mark.parametrize("path", ["prometheus/alerts.yml", "grafana/dashboard.json"])
def test_only_metrics_that_exist_are_asked_for(path):
    """007-R10"""
    asked = metrics_in((DEPLOY / path).read_text())
    assert asked and asked <= metric_names()


def test_the_dashboard_asks_in_promql_and_shows_every_metric(tmp_path):
    """007-R10"""
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    plain = [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in asked]
    rules = [{"record": f"x{number}", "expr": expr} for number, expr in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "x", "rules": rules}]}))
    run("promtool", "check", "rules", str(tmp_path / "rules.yml"))
    assert metrics_in("".join(asked)) == metric_names()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_nginx_is_never_the_first_to_give_up():
    """007-R6"""
    site = (DEPLOY / "nginx" / "chutes-router.conf").read_text()
    told = dict(re.findall(r"^ +(\w+) (\d+\w)\w*;", site, re.MULTILINE))
    config = load_config()
    longest_s = config.max_attempts / 1000 * (
        config.upstream_nonstream_header_timeout_ms + config.upstream_first_body_byte_timeout_ms)
    assert longest_s < seconds(told["proxy_read_timeout"])
    assert config.upstream_idle_timeout_ms / 1000 < seconds(told["proxy_read_timeout"])
    largest = int(told["client_max_body_size"].rstrip("m")) * 2**20
    assert config.max_request_bytes <= largest
    # The router allows a large body a second more for each 256 KiB.
    body_s = config.client_body_timeout_ms / 1000 + largest / 2**18
    assert body_s < seconds(told["client_body_timeout"])
    assert seconds(told["keepalive_timeout"]) < draining._IDLE_S < config.client_keepalive_secs
    # What else would send a POST twice.
    assert re.findall(r"proxy_next_upstream (.*);", site) == ["error timeout"]
    assert seconds(told["send_timeout"]) * 1000 == config.client_write_timeout_ms
    [size] = re.findall(r"large_client_header_buffers \d+ (\d+)k;", site)
    assert int(size) * 1024 > config.max_header_field_bytes


def seconds(text):
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def test_the_operators_page_names_every_alert_and_files_that_exist():
    """007-R10"""
    page = (DEPLOY / "README.md").read_text()
    [group] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule["alert"] in page
    for name in re.findall(r"`((?:app|tests|specs|deploy)/[\w./-]*)`", page):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`([A-Z]+_[A-Z_]+)[=`]", page):
        assert name in VARIABLES | {"GUNICORN_CMD_ARGS"}, name

"""The environment as one frozen value; all problems in it reported together.

Each variable is declared once, in `Config`: attribute, name, parser, default, and the sentence
that says what it means. The README's table is checked against these declarations.

Source: specs/001 R2-R5.
"""

import dataclasses
import ipaddress
import os
import pathlib
import re
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from environs import Env, EnvValidationError, ValidationError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_REDIS_URL = re.compile(r"rediss?://[^\s/?#]+(/[0-9]{0,4})?|unix://[^\s?#]*/[^\s?#]+(\?db=[0-9]+)?")

# Set by gunicorn.conf.py, for its workers; no setting of an operator's.
RUNTIME_DIRECTORY = "CHUTES_ROUTER_RUNTIME_DIRECTORY"
RUNTIME_OWNER = "CHUTES_ROUTER_RUNTIME_OWNER"

# What the kernel has room for, less the end of the text.
_LONGEST_SOCKET_PATH = 107
_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})")


class ConfigError(Exception):
    """The environment cannot be used; the text has one sentence for each bad variable."""


@dataclasses.dataclass(frozen=True)
class TrustedPeers:
    """Whose X-Forwarded-For is believed: address ranges, and unix-socket peers if `unix`."""

    networks: tuple[Network, ...] = ()
    unix: bool = False


@dataclasses.dataclass(frozen=True)
class Limit:
    """A number, or a share of another one; `text` is how it was given."""

    text: str
    number: int = 0
    share: float = 0.0

    def of(self, whole: int) -> int:
        """Return the limit where it may be a share of `whole`: at least 1, and less than that.

        One more must still get in, to be refused.
        """
        return max(1, min(self.number or int(whole * self.share), whole - 1))

    def __str__(self) -> str:
        return self.text


def _whole_number(least: int, most: int = 10**12) -> Callable[[str], int]:
    expected = f"a whole number of at least {least}"
    if most != 10**12:
        expected += f" and at most {most}"

    def parse(text: str) -> int:
        # int() would also take "1_000", " 5 " and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,13}", text) or not least <= int(text) <= most:
            raise ValidationError(expected)
        return int(text)

    return parse


def _limit(text: str) -> Limit:
    if re.fullmatch(r"[1-9][0-9]?%|100%", text):
        return Limit(text, share=int(text[:-1]) / 100)
    try:
        return Limit(text, number=_whole_number(1)(text))
    except ValidationError:
        raise ValidationError("a whole number of at least 1, or a share from 1% to 100%") from None


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValidationError("one of true, false, 1, 0, yes, no, on, off")


def _listen_address(text: str) -> str:
    match, path = _HOST_PORT.fullmatch(text), text.removeprefix("unix:")
    if match:
        usable = 1 <= int(match["port"]) <= 65535 and _is_host(match["host"])
    else:
        usable = (re.fullmatch(r"unix:/\S+", text) is not None
                  and len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH
                  and os.path.isdir(os.path.dirname(path)) and not os.path.isdir(path))
    if not usable:
        raise ValidationError("host:port, or unix:/path in a directory that exists")
    return text


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True


def _collide(one: str, other: str) -> bool:
    """Say whether two addresses cannot both be listened on."""
    mine, its = _HOST_PORT.fullmatch(one), _HOST_PORT.fullmatch(other)
    if not mine or not its:
        return os.path.normpath(one) == os.path.normpath(other)
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (mine["host"], its["host"])}
    by_ipv4 = not any(host.startswith("[") for host in hosts)
    return mine["port"] == its["port"] and (
        len(hosts) == 1 or "[::]" in hosts or by_ipv4 and "0.0.0.0" in hosts)


def _optional(parse: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: parse(text) if text else ""


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValidationError("an http or https URL with a host")
    if "@" in parts.netloc:
        # requests would turn it into an Authorization header in place of the client's.
        raise ValidationError("a URL without credentials")
    return text


def _base_url(text: str) -> str:
    if "?" in _url(text) or "#" in text:
        raise ValidationError("a URL without query and fragment")
    return text.rstrip("/")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # Not shown: it may be a secret.
        raise ValidationError("text in UTF-8") from None
    return text


def _proxy(text: str) -> str:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        usable = not text or (parts.scheme in ("http", "https") and parts.hostname
                              and parts.port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValidationError("an http or https URL")
    return text


def _directory(text: str) -> str:
    if text and not os.path.isdir(text):
        raise ValidationError("the path of a directory that exists")
    return text


def _ca_bundle(text: str) -> str:
    if text and not os.path.isdir(text):
        try:
            # No context that the service uses: gevent has not taken its place here yet.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=text)
        except OSError:
            raise ValidationError("the path of a file of certificates, or a directory") from None
    return text


def _sticky_url(text: str) -> str:
    try:
        usable = not text or _REDIS_URL.fullmatch(text) and urlsplit(text).port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValidationError(
            "redis://host:port/db, rediss://host:port/db or unix:///path?db=number")
    return text


def _trusted_peers(text: str) -> TrustedPeers:
    words = text.replace(",", " ").split()
    try:
        networks = tuple(ipaddress.ip_network(word, strict=False)
                         for word in words if word != "unix")
    except ValueError:
        raise ValidationError("CIDRs such as 10.0.0.0/8, or the word unix") from None
    return TrustedPeers(networks, "unix" in words)


def _log_level(text: str) -> str:
    if text.lower() not in _LOG_LEVELS:
        raise ValidationError("one of " + ", ".join(_LOG_LEVELS))
    return text.lower()


def _option(name: str, parse: Callable[[str], Any], default: str, says: str,
            secret: bool = False) -> Any:
    return dataclasses.field(repr=not secret, metadata={
        "name": name, "parse": parse, "default": default, "says": says, "secret": secret})


@dataclasses.dataclass(frozen=True)
class Config:
    """What the service was told by its environment; durations keep the unit of their name."""

    listen_addr: str = _option(
        "LISTEN_ADDR", _listen_address, "0.0.0.0:8080",
        "where the service listens: host:port, or unix:/path")
    health_listen_addr: str = _option(
        "HEALTH_LISTEN_ADDR", _optional(_listen_address), "",
        "a second address for probes and scrapes only, with connections of its own")
    backend_base_url: str = _option(
        "BACKEND_BASE_URL", _base_url, "https://llm.chutes.ai",
        "the upstream; /v1/chat/completions is appended")
    models_url: str = _option(
        "MODELS_URL", _url, "https://llm.chutes.ai/v1/models",
        "the feed that makes the allowlist")
    models_refresh_ms: int = _option(
        "MODELS_REFRESH_MS", _whole_number(1), "300000",
        "time between two fetches of the models feed, ms")
    utilization_url: str = _option(
        "UTILIZATION_URL", _url, "https://api.chutes.ai/chutes/utilization",
        "the feed that makes the ranking")
    utilization_refresh_ms: int = _option(
        "UTILIZATION_REFRESH_MS", _whole_number(1), "5000",
        "time between two fetches of the utilization feed, ms")
    control_plane_timeout_ms: int = _option(
        "CONTROL_PLANE_TIMEOUT_MS", _whole_number(1), "10000",
        "a feed must be there whole within this time, ms")
    readyz_max_snapshot_age_ms: int = _option(
        "READYZ_MAX_SNAPSHOT_AGE_MS", _whole_number(1), "20000",
        "not ready with a ranking older than this, ms")
    readyz_max_allowlist_age_ms: int = _option(
        "READYZ_MAX_ALLOWLIST_AGE_MS", _whole_number(1), "600000",
        "not ready with an allowlist older than this, ms")
    sticky_ttl_secs: int = _option(
        "STICKY_TTL_SECS", _whole_number(0), "1800",
        "how long a client's model is remembered after its last use, s; 0 is off")
    sticky_max_entries: int = _option(
        "STICKY_MAX_ENTRIES", _whole_number(0), "10000",
        "how many clients are remembered; 0 is off")
    sticky_hash_secret: str = _option(
        "STICKY_HASH_SECRET", _text, "",
        "key of the digests that stand for clients; empty: random at start", secret=True)
    sticky_url: str = _option(
        "STICKY_URL", _sticky_url, "",
        "redis://, rediss:// or unix:// of a store all replicas share; empty: this host's own",
        secret=True)
    state_dir: str = _option(
        "STATE_DIR", _directory, "",
        "directory where the last good feeds survive a restart; empty: in memory only")
    trust_proxy_headers: bool = _option(
        "TRUST_PROXY_HEADERS", _boolean, "false",
        "whether X-Forwarded-For of a trusted peer names the client")
    trusted_proxy_cidrs: TrustedPeers = _option(
        "TRUSTED_PROXY_CIDRS", _trusted_peers, "",
        "the trusted peers: CIDRs, and unix for unix-socket peers")
    max_request_bytes: int = _option(
        "MAX_REQUEST_BYTES", _whole_number(1), "1048576",
        "a larger request body is refused with 413, bytes")
    max_model_list_items: int = _option(
        "MAX_MODEL_LIST_ITEMS", _whole_number(1), "8",
        "a longer model list is refused with 400")
    max_attempts: int = _option(
        "MAX_ATTEMPTS", _whole_number(1), "8",
        "how many candidates a request may try")
    max_inflight_requests: Limit = _option(
        "MAX_INFLIGHT_REQUESTS", _limit, "90%",
        "a worker refuses more with 503: a number, or a share of WORKER_CONNECTIONS")
    upstream_connect_timeout_ms: int = _option(
        "UPSTREAM_CONNECT_TIMEOUT_MS", _whole_number(1), "2000",
        "name lookup, connect and TLS together, ms")
    upstream_header_timeout_ms: int = _option(
        "UPSTREAM_HEADER_TIMEOUT_MS", _whole_number(1), "10000",
        "from the start of an attempt to the response headers, streaming requests, ms")
    upstream_nonstream_header_timeout_ms: int = _option(
        "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS", _whole_number(1), "120000",
        "the same for requests without \"stream\": true, ms")
    upstream_first_body_byte_timeout_ms: int = _option(
        "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS", _whole_number(1), "120000",
        "from the response headers to the first byte of the body, ms")
    upstream_idle_timeout_ms: int = _option(
        "UPSTREAM_IDLE_TIMEOUT_MS", _whole_number(1), "300000",
        "longest silence within a body, ms")
    client_body_timeout_ms: int = _option(
        "CLIENT_BODY_TIMEOUT_MS", _whole_number(1), "30000",
        "a request body must be there whole within this time, ms")
    client_write_timeout_ms: int = _option(
        "CLIENT_WRITE_TIMEOUT_MS", _whole_number(1), "60000",
        "a client that takes no byte for this long is dropped, ms")
    https_proxy: str = _option(
        "HTTPS_PROXY", _proxy, "",
        "proxy for calls to https URLs; read once, at start")
    no_proxy: str = _option(
        "NO_PROXY", _text, "",
        "hosts that are called without the proxy; read once, at start")
    ca_bundle: str = _option(
        "REQUESTS_CA_BUNDLE", _ca_bundle, "",
        "CA certificates trusted for calls to https URLs; read once, at start")
    web_concurrency: int = _option(
        "WEB_CONCURRENCY", _whole_number(1, 1000), "2",
        "worker processes")
    worker_connections: int = _option(
        "WORKER_CONNECTIONS", _whole_number(1, 100_000), "2000",
        "client connections per worker")
    graceful_timeout_secs: int = _option(
        "GRACEFUL_TIMEOUT_SECS", _whole_number(1), "120",
        "how long requests in flight may take to finish at shutdown, s")
    log_level: str = _option(
        "LOG_LEVEL", _log_level, "info",
        "least severe line logged: " + ", ".join(_LOG_LEVELS))

    @property
    def addresses(self) -> list[str]:
        """Where connections are taken: the service's address, then the probes' if there is one."""
        return [self.listen_addr, *[self.health_listen_addr] * bool(self.health_listen_addr)]

    def effective(self) -> dict[str, str]:
        """Return every variable's name and value as text, secrets starred."""
        shown = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, TrustedPeers):
                value = " ".join([*map(str, value.networks), *["unix"] * value.unix])
            # A URL may hold a password before its host, and a key in its query.
            if value and (field.metadata["secret"] or re.search("[@?]", str(value))):
                value = "****"
            shown[field.metadata["name"]] = str(value)
        return shown


def load_config() -> Config:
    """Read the environment of this process.

    Returns  Config
    Raises   ConfigError naming every bad variable: name, value got, what was expected

    Source: specs/001 R2-R4.
    """
    # Not eager: problems are collected instead of ending at the first one.
    env = Env(eager=False, expand_vars=False)
    values = {}
    for field in dataclasses.fields(Config):
        parser = f"parse_{field.name}"
        env.add_parser(parser, field.metadata["parse"])
        values[field.name] = getattr(env, parser)(
            field.metadata["name"], field.metadata["default"])
    problems = {}
    try:
        env.seal()
    except EnvValidationError as error:
        problems = {name: messages[0] for name, messages in dict(
            error.error_messages).items()}  # type: ignore[arg-type]
    if values["sticky_url"] and values["sticky_hash_secret"] == "":
        problems["STICKY_HASH_SECRET"] = "a secret that all replicas share, with a STICKY_URL"
    for field in dataclasses.fields(Config):
        # The bytes of a path may be anything to the system; to a log they must be text.
        if "\udc80" <= max(os.environ.get(field.metadata["name"], ""), default="") <= "\udcff":
            problems[field.metadata["name"]] = "text in UTF-8"
    if values["health_listen_addr"] and _collide(
            values["health_listen_addr"], values["listen_addr"]):
        problems["HEALTH_LISTEN_ADDR"] = "another address than LISTEN_ADDR"
    if problems:
        raise ConfigError("\n".join(f"{name}: got {_shown(name)}, expected {expected}."
                                    for name, expected in problems.items()))
    return Config(**values)


def runtime_directory() -> pathlib.Path | None:
    """Return the directory that gunicorn's master made for its workers; None without a master."""
    path = os.environ.get(RUNTIME_DIRECTORY)
    return None if path is None else pathlib.Path(path)


def _shown(name: str) -> str:
    # What stands before an @ in an address may be a password.
    value = os.environ.get(name, "")
    secret = any(field.metadata["secret"] for field in dataclasses.fields(Config)
                 if field.metadata["name"] == name)
    return "'****'" if value and ("@" in value or secret) else repr(value)

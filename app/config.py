"""The environment as one frozen value; all problems in it are reported together.

Each variable is declared once, in `Config`: attribute, name, parser, default, and the sentence
that says what it means. The README's table is checked against these declarations.

Source: specs/001 R2-R5.
"""

import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from app import config_parsers as parse
from app.alias_file import AliasFile, read_aliases
from app.config_parsers import BadFile, BadValue, Limit, TrustedPeers
from app.proxies import goes_direct

# gunicorn.conf.py sets these for its workers; an operator sets neither.
RUNTIME_DIRECTORY = "CHUTES_ROUTER_RUNTIME_DIRECTORY"
RUNTIME_OWNER = "CHUTES_ROUTER_RUNTIME_OWNER"
# Seconds since the epoch at which the master started.
STARTED_AT = "CHUTES_ROUTER_STARTED_AT"
# The aliases file as the master has judged it, for workers that start when it has changed.
ALIASES_TEXT = "CHUTES_ROUTER_ALIASES_TEXT"

VERSION = "1.0"

PASS_UNKNOWN = "pass"
OPENAI_ERRORS = "openai"
BALANCED = "balanced"

# A refresh takes some milliseconds of processor time, and a fetch over the Internet some hundred.
_LEAST_REFRESH_MS = 20
_LEAST_FETCH_MS = 100


# Files of a worker that are no connection of a request: some dozens, and room to spare.
_OTHER_FILES = 100


class ConfigError(Exception):
    """The environment cannot be used; the text has one sentence for each bad variable."""


def _option(name: str, parser: Callable[[str], Any], default: str, says: str,
            secret: bool = False, lower_too: bool = False) -> Any:
    return dataclasses.field(metadata={
        "name": name, "parse": parser, "default": default, "says": says, "secret": secret,
        "lower_too": lower_too})


@dataclasses.dataclass(frozen=True, repr=False)
class Config:
    """What the service was told by its environment; durations keep the unit of their name."""

    listen_addr: str = _option(
        "LISTEN_ADDR", parse.listen_address, "0.0.0.0:8080",
        "where the service listens: host:port, or unix:/path")
    health_listen_addr: str = _option(
        "HEALTH_LISTEN_ADDR", parse.optional(parse.listen_address), "",
        "a second address for probes and scrapes only, with connections of its own")
    backend_base_url: str = _option(
        "BACKEND_BASE_URL", parse.base_url, "https://llm.chutes.ai",
        "the upstream; the client's path is appended")
    aliases_file: AliasFile = _option(
        "ALIASES_FILE", lambda path: read_aliases(path, os.environ.get(ALIASES_TEXT)), "",
        "TOML file of aliases; read at start and at SIGHUP; empty: only the two AutoPilots")
    unknown_models: str = _option(
        "UNKNOWN_MODELS", parse.one_of("refuse", PASS_UNKNOWN), "refuse",
        "names that the models feed does not have: refuse, or pass them on as written")
    upstream_errors: str = _option(
        "UPSTREAM_ERRORS", parse.one_of(OPENAI_ERRORS, "as_is"), OPENAI_ERRORS,
        "the upstream's errors: openai adds the member that SDKs show, as_is passes them on")
    alias_choice: str = _option(
        "ALIAS_CHOICE", parse.one_of("ranked", BALANCED), "ranked",
        "among models that are equal otherwise: ranked, the best first, or balanced, shared out")
    alias_fit: bool = _option(
        "ALIAS_FIT", parse.boolean, "true",
        "whether an alias prefers models that declare what a request needs")
    cooldown_secs: int = _option(
        "COOLDOWN_SECS", parse.whole_number(0), "5",
        "how long a model is set aside after failures in a row, then twice that, s; 0 is off")
    cooldown_max_secs: int = _option(
        "COOLDOWN_MAX_SECS", parse.whole_number(1), "60",
        "a model is set aside for this time at most, s")
    cooldown_failures: int = _option(
        "COOLDOWN_FAILURES", parse.whole_number(1), "3",
        "after so many failures in a row a model is set aside")
    models_url: str = _option(
        "MODELS_URL", parse.url, "https://llm.chutes.ai/v1/models",
        "the feed that makes the allowlist")
    models_refresh_ms: int = _option(
        "MODELS_REFRESH_MS", parse.whole_number(_LEAST_REFRESH_MS), "300000",
        "time between two fetches of the models feed, ms")
    utilization_url: str = _option(
        "UTILIZATION_URL", parse.url, "https://api.chutes.ai/chutes/utilization",
        "the feed that makes the ranking")
    utilization_refresh_ms: int = _option(
        "UTILIZATION_REFRESH_MS", parse.whole_number(_LEAST_REFRESH_MS), "5000",
        "time between two fetches of the utilization feed, ms")
    control_plane_timeout_ms: int = _option(
        "CONTROL_PLANE_TIMEOUT_MS", parse.whole_number(_LEAST_FETCH_MS), "10000",
        "a feed must be there whole within this time, ms")
    readyz_max_snapshot_age_ms: int = _option(
        "READYZ_MAX_SNAPSHOT_AGE_MS", parse.whole_number(50), "20000",
        "not ready with a ranking older than this, ms")
    readyz_max_allowlist_age_ms: int = _option(
        "READYZ_MAX_ALLOWLIST_AGE_MS", parse.whole_number(50), "600000",
        "not ready with an allowlist older than this, ms")
    sticky_ttl_secs: int = _option(
        "STICKY_TTL_SECS", parse.whole_number(0), "1800",
        "how long a client's model is remembered after its last use, s; 0 is off")
    sticky_max_entries: int = _option(
        "STICKY_MAX_ENTRIES", parse.whole_number(0), "10000",
        "how many clients are remembered; 0 is off")
    sticky_hash_secret: str = _option(
        "STICKY_HASH_SECRET", str, "",
        "key of the digests that stand for clients; empty: random at start", secret=True)
    sticky_url: str = _option(
        "STICKY_URL", parse.optional(parse.redis_url), "",
        "redis://, rediss:// or unix:// of a store all replicas share; empty: this host's own",
        secret=True)
    sticky_return_secs: int = _option(
        "STICKY_RETURN_SECS", parse.whole_number(0), "60",
        "how long a list begins with the model that a failover has found, s; 0: not at all")
    sticky_session_headers: tuple[str, ...] = _option(
        "STICKY_SESSION_HEADERS", parse.header_names,
        "x-session-id, x-session-affinity, x-litellm-session-id",
        "headers that tell the conversations of one client apart; the first that is there counts")
    state_dir: str = _option(
        "STATE_DIR", parse.optional(parse.directory), "",
        "directory where the last good feeds survive a restart; empty: in memory only")
    trust_proxy_headers: bool = _option(
        "TRUST_PROXY_HEADERS", parse.boolean, "false",
        "whether X-Forwarded-For of a trusted peer names the client")
    trusted_proxy_cidrs: TrustedPeers = _option(
        "TRUSTED_PROXY_CIDRS", parse.trusted_peers, "",
        "the trusted peers: CIDRs, and unix for unix-socket peers")
    max_request_bytes: int = _option(
        "MAX_REQUEST_BYTES", parse.whole_number(1), "33554432",
        "a larger request body is refused with 413, bytes")
    max_body_bytes_in_flight: int = _option(
        "MAX_BODY_BYTES_IN_FLIGHT", parse.whole_number(1), "268435456",
        "a worker refuses with 503 what would make it hold more bytes of request bodies")
    max_header_field_bytes: int = _option(
        "MAX_HEADER_FIELD_BYTES", parse.whole_number(256, 1048576), "16384",
        "a request with a larger header field, name and value, is refused with 431")
    max_model_list_items: int = _option(
        "MAX_MODEL_LIST_ITEMS", parse.whole_number(1), "8",
        "a longer model list is refused with 400")
    max_attempts: int = _option(
        "MAX_ATTEMPTS", parse.whole_number(1), "8",
        "how many attempts a request may make, each on another candidate")
    max_edge_failures: int = _option(
        "MAX_EDGE_FAILURES", parse.whole_number(1), "2",
        "so many in a row end a request: the upstream is not reached, or says 503 in HTML")
    failover_budget_ms: int = _option(
        "FAILOVER_BUDGET_MS", parse.whole_number(50), "60000",
        "no further candidate is tried so long after a request came, ms")
    failover_on_capacity_429: bool = _option(
        "FAILOVER_ON_CAPACITY_429", parse.boolean, "false",
        "whether a 429 that says that the infrastructure is full allows the next candidate")
    max_inflight_requests: Limit = _option(
        "MAX_INFLIGHT_REQUESTS", parse.limit, "90%",
        "a worker refuses more with 503: a number, or a share of WORKER_CONNECTIONS")
    upstream_connect_timeout_ms: int = _option(
        "UPSTREAM_CONNECT_TIMEOUT_MS", parse.whole_number(50), "2000",
        "name lookup, connect and TLS together, ms")
    upstream_header_timeout_ms: int = _option(
        "UPSTREAM_HEADER_TIMEOUT_MS", parse.whole_number(50), "10000",
        "from the start of an attempt to the response headers, streaming requests, ms")
    upstream_header_timeout_ms_per_kib: int = _option(
        "UPSTREAM_HEADER_TIMEOUT_MS_PER_KIB", parse.whole_number(0), "250",
        "so much more for each KiB of the request body, ms")
    upstream_nonstream_header_timeout_ms: int = _option(
        "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS", parse.whole_number(50), "600000",
        "the same for requests without \"stream\": true, and the most for any, ms")
    upstream_first_body_byte_timeout_ms: int = _option(
        "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS", parse.whole_number(50), "120000",
        "from the response headers to the first byte of the body, ms")
    upstream_idle_timeout_ms: int = _option(
        "UPSTREAM_IDLE_TIMEOUT_MS", parse.whole_number(50), "300000",
        "longest silence within a body, ms")
    upstream_connection_max_idle_secs: int = _option(
        "UPSTREAM_CONNECTION_MAX_IDLE_SECS", parse.whole_number(0), "30",
        "a connection idle for longer is not used again, s; 0: none is")
    upstream_connection_max_age_secs: int = _option(
        "UPSTREAM_CONNECTION_MAX_AGE_SECS", parse.whole_number(0), "300",
        "a connection opened longer ago is not used again, s; 0: none is")
    cut_unfinished_streams: bool = _option(
        "CUT_UNFINISHED_STREAMS", parse.boolean, "true",
        "whether an event stream that ends without [DONE] is cut, and so does not look complete")
    client_header_timeout_ms: int = _option(
        "CLIENT_HEADER_TIMEOUT_MS", parse.whole_number(50), "10000",
        "from the first byte of a request's head to its last, ms")
    client_body_timeout_ms: int = _option(
        "CLIENT_BODY_TIMEOUT_MS", parse.whole_number(50), "30000",
        "a request body must be there whole within this time, ms; 1 s more per 256 KiB announced")
    client_write_timeout_ms: int = _option(
        "CLIENT_WRITE_TIMEOUT_MS", parse.whole_number(50), "60000",
        "a client that takes no byte for this long is dropped, ms; one that has vanished "
        "within a minute")
    client_keepalive_secs: int = _option(
        "CLIENT_KEEPALIVE_SECS", parse.whole_number(1, 86_400), "75",
        "an idle client connection is closed after this time, s")
    https_proxy: str = _option(
        "HTTPS_PROXY", parse.optional(parse.proxy), "",
        "http or https proxy for calls to https URLs; read once, at start", lower_too=True)
    http_proxy: str = _option(
        "HTTP_PROXY", parse.optional(parse.proxy), "",
        "the same for calls to http URLs", lower_too=True)
    all_proxy: str = _option(
        "ALL_PROXY", parse.optional(parse.proxy), "",
        "the same where the scheme's own variable is empty", lower_too=True)
    no_proxy: str = _option(
        "NO_PROXY", str, "",
        "called without a proxy: hosts, domains, addresses and CIDRs between commas, or *",
        lower_too=True)
    ca_bundle: str = _option(
        "REQUESTS_CA_BUNDLE", parse.optional(parse.ca_bundle), "",
        "CA certificates trusted for calls to https and rediss URLs; read once, at start")
    cors_allow_origins: frozenset[str] = _option(
        "CORS_ALLOW_ORIGINS", parse.origins, "",
        "origins of pages that may call the router from a browser, or *; empty: none")
    web_concurrency: int = _option(
        "WEB_CONCURRENCY", parse.whole_number(1, 1000), "2",
        "worker processes")
    worker_connections: int = _option(
        "WORKER_CONNECTIONS", parse.whole_number(1, 100_000), "2000",
        "client connections per worker")
    graceful_timeout_secs: int = _option(
        "GRACEFUL_TIMEOUT_SECS", parse.whole_number(1), "120",
        "how long requests in flight may take to finish at shutdown, s")
    log_level: str = _option(
        "LOG_LEVEL", parse.one_of(*parse.LOG_LEVELS), "info",
        "least severe line logged: " + ", ".join(parse.LOG_LEVELS))

    def places(self, files: int) -> int:
        """Return how many connections a worker takes on each address.

        files  how many it may have open; less than 1 for no limit

        At least two, so that there is one for a probe beside a request.
        """
        most = self.worker_connections
        if files > 0:
            most = min(most, (files - _OTHER_FILES) // (1 + len(self.addresses)))
        return max(2, most)

    def files_needed(self) -> int:
        """Return how many files a worker opens at most.

        The clients of each address, as many connections to the upstream, and everything else.
        """
        return (1 + len(self.addresses)) * self.worker_connections + _OTHER_FILES

    def header_timeout_s(self, stream: bool, body_bytes: int) -> float:
        """Return the header deadline of an attempt, a total.

        stream      whether the body says "stream": true
        body_bytes  of the client's request

        Source: specs/002 R13.
        """
        longest_ms = self.upstream_nonstream_header_timeout_ms
        if not stream:
            return longest_ms / 1000
        reading_ms = self.upstream_header_timeout_ms_per_kib * body_bytes / 1024
        return min(self.upstream_header_timeout_ms + reading_ms, longest_ms) / 1000

    @property
    def addresses(self) -> list[str]:
        """Where connections are taken: the service's address, then the probes' if there is one."""
        return [self.listen_addr, *[self.health_listen_addr] * bool(self.health_listen_addr)]

    def proxy_for(self, url: str) -> str:
        """Return the URL of the proxy that a call to `url` goes through; empty for none."""
        if goes_direct(url, self.no_proxy):
            return ""
        is_https = urlsplit(url).scheme == "https"
        return (self.https_proxy if is_https else self.http_proxy) or self.all_proxy

    def effective(self) -> dict[str, str]:
        """Return every variable's name and value as text, secrets starred."""
        shown = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            words = sorted(value) if isinstance(value, frozenset) else value
            text = " ".join(words) if type(words) in (list, tuple) else str(value)
            # A URL may hold a password before its host, and a key in its query.
            secret = field.metadata["secret"] or re.search("[@?]", text)
            shown[field.metadata["name"]] = "****" if text and secret else text
        return shown

    def __repr__(self) -> str:
        return f"Config({self.effective()})"


# A number that may not be larger than another.
_AT_MOST = {"upstream_header_timeout_ms": "upstream_nonstream_header_timeout_ms",
            "cooldown_secs": "cooldown_max_secs"}


def load_config(environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check the environment.

    environ  variables by name; those that are not declared in Config are ignored. A proxy
             variable may be in lower case, which wins over upper case, as in requests and curl.
    Returns  Config
    Raises   ConfigError naming every bad variable: name, value got, what was expected
    Cost     looks at the files and directories that are named

    Source: specs/001 R2-R4.
    """
    options = {field.name: field.metadata for field in dataclasses.fields(Config)}
    values: dict[str, Any] = {}
    expected: dict[str, str] = {}
    sentences: list[str] = []
    for name, option in options.items():
        try:
            text = environ.get(_spelling(option, environ), option["default"])
            values[name] = option["parse"](parse.utf8(text))
        except BadFile as error:
            sentences += [f"{option['name']}: {problem}" for problem in error.problems]
        except BadValue as error:
            expected[name] = str(error)
    if values.get("sticky_url") and values.get("sticky_hash_secret") == "":
        expected["sticky_hash_secret"] = "a secret that all replicas share, with a STICKY_URL"
    if values.get("max_body_bytes_in_flight", 0) < values.get("max_request_bytes", 0) and (
            "max_body_bytes_in_flight" not in expected):
        expected["max_body_bytes_in_flight"] = "at least MAX_REQUEST_BYTES"
    for name, most in _AT_MOST.items():
        if values.get(name, 0) > values.get(most, math.inf):
            expected[name] = f"at most {options[most]['name']}"
    if values.get("health_listen_addr") and parse.collide(
            values["health_listen_addr"], values.get("listen_addr", "")):
        expected["health_listen_addr"] = "another address than LISTEN_ADDR"
    sentences += [_sentence(options[name], environ, what) for name, what in expected.items()]
    if sentences:
        raise ConfigError("\n".join(sentences))
    return Config(**values)


def _spelling(option: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the name under which a variable is read."""
    lower: str = option["name"].lower()
    return lower if option["lower_too"] and lower in environ else option["name"]


def _sentence(option: Mapping[str, Any], environ: Mapping[str, str], expected: str) -> str:
    name = _spelling(option, environ)
    got = environ.get(name, option["default"])
    # What stands before an @ in an address may be a password.
    shown = "'****'" if got and ("@" in got or option["secret"]) else repr(got)
    return f"{name}: got {shown}, expected {expected}."


def runtime_directory() -> pathlib.Path | None:
    """Return the directory that gunicorn's master made for its workers; None without a master."""
    path = os.environ.get(RUNTIME_DIRECTORY)
    return None if path is None else pathlib.Path(path)


def started_at() -> float:
    """Return when the master started, seconds since the epoch; without a master that is now."""
    return float(os.environ.get(STARTED_AT) or time.time())

"""Parsers for the values of environment variables.

Each takes a variable's text and returns its value, or raises BadValue with what was expected.

Source: specs/001 R2-R4.
"""

import dataclasses
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Iterable
from urllib.parse import SplitResult, urlsplit

from app.files import read_regular

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

# The size of sun_path in Linux's sockaddr_un, without the final NUL.
_MAX_SOCKET_PATH_BYTES = 107
_NO_LIMIT = 10**12
# A bundle of every public authority takes a quarter of a mebibyte.
_MAX_BUNDLE_BYTES = 16 * 1024 * 1024
_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})")
_REDIS_URL = re.compile(r"rediss?://[^\s/?#]+(/[0-9]{0,4})?|unix://[^\s?#]*/[^\s?#]+(\?db=[0-9]+)?")
# A browser sends neither upper case nor a path.
_ORIGIN = re.compile(r"https?://[a-z0-9.\-\[\]:]+")
_NOT_IN_URLS = re.compile(r"[\s\x00-\x1f\x7f]")


class BadValue(ValueError):
    """A variable's text has no meaning; the exception's text is what was expected."""


class BadFile(BadValue):
    """A file that a variable names cannot be used; `problems` has a sentence for each reason."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("a file that can be used")
        self.problems = tuple(problems)


@dataclasses.dataclass(frozen=True)
class TrustedPeers:
    """Whose X-Forwarded-For is believed: address ranges, and unix-socket peers if `unix`."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    def __str__(self) -> str:
        return " ".join([*map(str, self.networks), *["unix"] * self.unix])


@dataclasses.dataclass(frozen=True)
class Limit:
    """A number, or a share of another number; `text` is how it was given."""

    text: str
    number: int = 0
    share: float = 0.0

    def resolve(self, whole: int) -> int:
        """Return the limit as a number: at least 1 and less than `whole`.

        A connection above the limit must still be accepted, so that it can be refused.
        """
        return max(1, min(self.number or int(whole * self.share), whole - 1))

    def __str__(self) -> str:
        return self.text


def whole_number(least: int, most: int = _NO_LIMIT) -> Callable[[str], int]:
    """Return the parser of a whole number from `least` to `most`."""
    expected = f"a whole number of at least {least}"
    if most != _NO_LIMIT:
        expected += f" and at most {most}"

    def parse(text: str) -> int:
        # int() would also take "1_000", " 5 " and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,13}", text) or not least <= int(text) <= most:
            raise BadValue(expected)
        return int(text)

    return parse


def limit(text: str) -> Limit:
    """Parse a number, or a share in percent."""
    if re.fullmatch(r"[1-9][0-9]?%|100%", text):
        return Limit(text, share=int(text[:-1]) / 100)
    try:
        return Limit(text, number=whole_number(1)(text))
    except BadValue:
        raise BadValue("a whole number of at least 1, or a share from 1% to 100%") from None


def boolean(text: str) -> bool:
    """Parse yes or no, in any case of letters."""
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise BadValue("one of true, false, 1, 0, yes, no, on, off")


def one_of(*words: str) -> Callable[[str], str]:
    """Return the parser of one of some words, in any case of letters."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise BadValue("one of " + ", ".join(words))
        return text.lower()

    return parse


def utf8(text: str) -> str:
    """Return the text. Bytes of the environment that are no UTF-8 stand in it as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue("text in UTF-8") from None
    return text


def optional(parse: Callable[[str], str]) -> Callable[[str], str]:
    """Return a parser that takes the empty text as well."""
    return lambda text: parse(text) if text else ""


def listen_address(text: str) -> str:
    """Check an address to listen on. Cost: looks at the directory of a unix socket."""
    match, path = _HOST_PORT.fullmatch(text), text.removeprefix("unix:")
    if match:
        usable = 1 <= int(match["port"]) <= 65535 and _is_host(match["host"])
    else:
        usable = (re.fullmatch(r"unix:/\S+", text) is not None
                  and len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES
                  and os.path.isdir(os.path.dirname(path)) and not os.path.isdir(path))
    if not usable:
        raise BadValue("host:port, or unix:/path in a directory that exists")
    return text


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True


def collide(one: str, other: str) -> bool:
    """Say whether two listen addresses exclude each other."""
    mine, its = _HOST_PORT.fullmatch(one), _HOST_PORT.fullmatch(other)
    if not mine or not its:
        return os.path.normpath(one) == os.path.normpath(other)
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (mine["host"], its["host"])}
    by_ipv4 = not any(host.startswith("[") for host in hosts)
    return mine["port"] == its["port"] and (
        len(hosts) == 1 or "[::]" in hosts or by_ipv4 and "0.0.0.0" in hosts)


def _http_url(text: str) -> SplitResult | None:
    """Return the parts of an http or https URL with a host, else None."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable and not _NOT_IN_URLS.search(text) else None


def url(text: str) -> str:
    """Check a URL to fetch from."""
    parts = _http_url(text)
    if parts is None:
        raise BadValue("an http or https URL with a host")
    if "@" in parts.netloc:
        # The client's own Authorization is what goes upstream.
        raise BadValue("a URL without credentials")
    return text


def origins(text: str) -> frozenset[str]:
    """Parse origins as browsers send them, or *, separated by commas or spaces."""
    words = frozenset(text.replace(",", " ").split())
    if not all(word == "*" or _ORIGIN.fullmatch(word) and _http_url(word) for word in words):
        raise BadValue("origins such as https://chat.example or http://localhost:3000, or *")
    return words


def header_names(text: str) -> tuple[str, ...]:
    """Parse names of header fields, separated by commas or spaces."""
    words = tuple(text.lower().replace(",", " ").split())
    # gunicorn drops fields that have an underscore in their name.
    if not all(re.fullmatch(r"[!#$%&'*+.^`|~0-9a-z-]+", word) for word in words):
        raise BadValue("names of header fields such as x-session-id, without underscores")
    return words


def base_url(text: str) -> str:
    """Check a URL that paths are appended to, and drop its trailing slashes."""
    if "?" in url(text) or "#" in text:
        raise BadValue("a URL without query and fragment")
    base = text.rstrip("/")
    if re.search(r"/v1(/chat/completions|/completions)?$", urlsplit(base).path):
        raise BadValue("a URL without /v1 at its end: the client's path, which begins with it, is "
                       "appended")
    return base


def proxy(text: str) -> str:
    """Check a proxy's URL."""
    if _http_url(text) is None:
        raise BadValue("an http or https URL with its scheme; SOCKS proxies are not supported")
    return text


def redis_url(text: str) -> str:
    """Check the URL of a Redis."""
    try:
        usable = _REDIS_URL.fullmatch(text) and urlsplit(text).port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BadValue("redis://host:port/db, rediss://host:port/db or unix:///path?db=number")
    return text


def directory(text: str) -> str:
    """Check that a directory exists."""
    if not os.path.isdir(text):
        raise BadValue("the path of a directory that exists")
    return text


def ca_bundle(text: str) -> str:
    """Check a directory or a file of CA certificates. Cost: reads it."""
    if os.path.isdir(text):
        # OpenSSL looks certificates up by a hash of their subject; it ignores other names.
        found = [os.path.isfile(os.path.join(text, name)) for name in os.listdir(text)
                 if re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name)]
        if not found or not all(found):
            raise BadValue("a directory with certificates, as c_rehash names them")
    else:
        try:
            read_regular(text, _MAX_BUNDLE_BYTES)
            # Only a check: gevent has not patched ssl yet, so no connection may use this context.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=text)
        except OSError:
            raise BadValue("the path of a file of certificates, or a directory") from None
    return text


def trusted_peers(text: str) -> TrustedPeers:
    """Parse CIDRs and the word unix, separated by commas or spaces."""
    words = text.replace(",", " ").split()
    try:
        networks = tuple(ipaddress.ip_network(word, strict=False)
                         for word in words if word != "unix")
    except ValueError:
        raise BadValue("CIDRs such as 10.0.0.0/8, or the word unix") from None
    return TrustedPeers(networks, "unix" in words)

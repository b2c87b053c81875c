"""Which URLs are fetched without a proxy, by the rules of NO_PROXY.

The rules are those of requests. Three more values have an effect: a "*" with spaces around it, an
IPv6 network, and an IPv4 address with a port.

Source: specs/001 R2.
"""

import ipaddress
from urllib.parse import urlsplit


def goes_direct(url: str, no_proxy: str) -> bool:
    """Say whether a URL is fetched without a proxy.

    url       with a host
    no_proxy  "*" for all hosts; or entries between commas, in any case of letters: a host or the
              end of one from a dot on, each with a port or without, an address, or a CIDR. Dots
              in front of an entry make no difference.
    """
    if no_proxy.strip() == "*":
        return True
    parts = urlsplit(url)
    host = parts.hostname or ""
    names = (f".{host}", f".{host}:{parts.port}")
    for entry in no_proxy.lower().split(","):
        entry = entry.strip().lstrip(".")
        if entry and any(name.endswith(f".{entry}") for name in names):
            return True
        if "/" in entry and _is_in(host, entry):
            return True
    return False


def _is_in(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        # The host is a name, or the entry is no CIDR.
        return False

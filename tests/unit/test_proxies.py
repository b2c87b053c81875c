"""Who is called without a proxy."""

import pytest
from requests.utils import should_bypass_proxies

from app.proxies import goes_direct

URLS = [
    "http://llm.example.test", "http://LLM.example.test:8080/v1?a=b",
    "https://example.test", "http://badexample.test",
    "http://10.1.2.3", "http://10.1.2.3:8080",
    "http://[fd00::1]:8080"]
ENTRIES = [
    "", "*", ",", ".", "example.test", ".example.test", "..example.test", "Example.TEST",
    "llm.example.test:8080", "example.test:8080", "llm.example.test:80", "xample.test", "test",
    "other.test, example.test", "other.test,*", "*.example.test", "10.1.2.3", "10.1.2.0/24",
    "10.1.3.0/24", "10.0.0.0/8,x", "10.1.2.3/33", "x/8", "2.3", "fd00::1", "[fd00::1]", "10.1.2.4"]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("no_proxy", ENTRIES)
def test_no_proxy_means_what_it_means_to_requests(monkeypatch, url, no_proxy):
    """001-R2"""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Given as its argument, requests takes an empty text for none at all.
    assert goes_direct(url, no_proxy) is should_bypass_proxies(url, no_proxy or None)


@pytest.mark.parametrize("url, no_proxy, direct", [
    ("http://llm.example.test", "example.test", True), ("http://llm.example.test", "", False),
    ("http://llm.example.test:8080", ".example.test:8080", True),
    ("http://llm.example.test:8080", "llm.example.test:80", False),
    ("http://example.test", " *", True), ("http://badexample.test", "example.test", False),
    ("http://10.1.2.3", "10.1.0.0/16", True), ("http://10.2.2.3", "10.1.0.0/16", False),
    ("http://[fd00::1]", "fd00::/8", True), ("http://10.1.2.3:8080", "10.1.2.3:8080", True)])
def test_hosts_suffixes_ports_addresses_and_networks(url, no_proxy, direct):
    """001-R2: the last two, and a space beside the star, go beyond requests."""
    assert goes_direct(url, no_proxy) is direct

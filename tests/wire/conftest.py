"""One router and one scripted backend that most wire tests share.

Tests do not get into each other's way because each names models of its own: the backend's
`:suffix` convention makes any number of names out of one that is listed.
"""

import itertools

import pytest

from tests.support.feeds import models_feed, utilization_feed, public_names
from tests.support.router import Router
from tests.support.upstream import Upstream

LISTED = "northwind/Cedar-1B"
SHORT = {
    "UPSTREAM_CONNECT_TIMEOUT_MS": "500", "UPSTREAM_HEADER_TIMEOUT_MS": "600",
    "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS": "1800",
    "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS": "600", "UPSTREAM_IDLE_TIMEOUT_MS": "700",
    "CLIENT_HEADER_TIMEOUT_MS": "700", "CLIENT_BODY_TIMEOUT_MS": "700",
    "CLIENT_WRITE_TIMEOUT_MS": "1000",
    "MAX_REQUEST_BYTES": "20000",
}
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def upstream():
    feed = models_feed([LISTED, *public_names()])
    with Upstream(models=feed, rows=utilization_feed()) as server:
        yield server


@pytest.fixture(scope="session")
def router(upstream):
    with Router(upstream.url, **SHORT) as process:
        process.wait_until_fed()
        yield process


@pytest.fixture
def model():
    """Return a function that makes a listed model name nobody used before."""
    return lambda: f"{LISTED}:test{next(_numbers)}"


@pytest.fixture
def fresh_connections(upstream):
    """See to it that the router's next request opens a connection: none is there to go stale."""
    upstream.drop_idle()

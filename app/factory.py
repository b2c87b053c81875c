"""Builds the application and connects its parts, and nothing else.

Source: specs/001 R1.
"""

import dataclasses
import functools
import pathlib
import secrets
import ssl
import time
from collections.abc import Callable
from typing import Any

from flask import Flask

from app import metrics
from app.config import Config, runtime_directory
from app.control.feed_client import feed_fetcher
from app.control.feeds import Feed, FeedSource
from app.control.saved import SavedFeed
from app.control.scheduler import PeriodicJob
from app.control.schemas import parse_models, parse_utilization
from app.inflight import InFlight
from app.journal import CAUSES
from app.routes.application import Application
from app.routes.health import Health
from app.routes.metrics import metrics_blueprint
from app.routes.proxy import Proxy
from app.routing.client_key import ClientKeys
from app.routing.outcomes import Failure
from app.routing.snapshot import SnapshotStore
from app.sticky.redis import RedisStickyStore
from app.sticky.session import Stickiness
from app.sticky.sqlite import SqliteStickyStore
from app.sticky.store import NoStickiness, StickyStore
from app.upstream.endpoint import Endpoint
from app.upstream.failover import Attempts, Sender
from app.upstream.tls import trusting
from app.upstream.transport import Transport

_LARGEST_FEED_BYTES = 32 * 1024 * 1024
# Ten times the real feeds; a container's shared memory may be 64 MiB for all that is in it.
_LARGEST_IN_MEMORY_BYTES = 5 * 1024 * 1024
# Upstreams keep idle connections for some seconds or more.
_DROP_STALE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Router:
    """The running parts of one worker; `app.extensions["router"]` holds it.

    store  the picture of the backend
    feeds  each can be refreshed by hand, which a test does
    """

    store: SnapshotStore
    feeds: tuple[Feed[Any], ...]
    jobs: tuple[PeriodicJob, ...]
    in_flight: InFlight

    def start(self) -> None:
        """Start what runs beside requests; called in each worker once it is up."""
        for job in self.jobs:
            job.start()

    def stop(self) -> None:
        """End what `start` started."""
        for job in self.jobs:
            job.stop()
        metrics.write_counts()


def create_app(config: Config, *, send: Sender | None = None,
               clock: Callable[[], float] = time.monotonic) -> Flask:
    """Build the application of one worker.

    config   of this process
    send     stands in for the transport
    clock    returns seconds, monotonic
    Returns  Flask app; `extensions["router"]` is its Router, not started
    """
    metrics.show_zeros(Failure, CAUSES)
    store, tls = SnapshotStore(clock), trusting(config.ca_bundle)
    shared = runtime_directory()
    feeds = _feeds(config, store, tls, clock, shared)
    sticky = _sticky_store(config, clock, shared)
    transport = _transport(config, tls)
    attempts = Attempts(send or transport.send,
                        config.upstream_first_body_byte_timeout_ms / 1000, config.max_attempts,
                        clock)
    in_flight = InFlight(config.max_inflight_requests.resolve(config.worker_connections))
    proxy = Proxy(config, store, Stickiness(sticky, _client_keys(config)), attempts, in_flight,
                  clock)

    app = Application(in_flight, config.client_write_timeout_ms / 1000)
    app.register_blueprint(proxy.blueprint())
    app.register_blueprint(Health(config, store, in_flight).blueprint())
    app.register_blueprint(metrics_blueprint())
    jobs = (*(feed.job() for feed in feeds),
            PeriodicJob("stale connections", transport.drop_stale, _DROP_STALE_S))
    app.extensions["router"] = Router(store, feeds, jobs, in_flight)
    return app


def _transport(config: Config, tls: ssl.SSLContext) -> Transport:
    endpoint = Endpoint(config.backend_base_url, config.proxy_for(config.backend_base_url), tls,
                        config.upstream_connect_timeout_ms / 1000)
    return Transport(endpoint, config.upstream_idle_timeout_ms / 1000)


def _sticky_store(config: Config, clock: Callable[[], float],
                  shared: pathlib.Path | None) -> StickyStore:
    if not config.sticky_ttl_secs or not config.sticky_max_entries:
        return NoStickiness()
    place = shared / "sticky.sqlite" if shared else pathlib.Path(":memory:")
    embedded = SqliteStickyStore(place, config.sticky_ttl_secs, config.sticky_max_entries, clock)
    if not config.sticky_url:
        return embedded
    return RedisStickyStore(config.sticky_url, config.sticky_ttl_secs, embedded, clock)


def _client_keys(config: Config) -> ClientKeys:
    trusted = config.trusted_proxy_cidrs if config.trust_proxy_headers else None
    return ClientKeys(config.sticky_hash_secret or secrets.token_hex(), trusted)


def _feeds(config: Config, store: SnapshotStore, tls: ssl.SSLContext, clock: Callable[[], float],
           shared: pathlib.Path | None) -> tuple[Feed[Any], ...]:
    _show(store)
    sources: tuple[FeedSource[Any], ...] = (
        FeedSource("models", config.models_url, config.models_refresh_ms / 1000, parse_models,
                   functools.partial(_take, store, store.replace_allowlist)),
        FeedSource("utilization", config.utilization_url, config.utilization_refresh_ms / 1000,
                   parse_utilization, functools.partial(_take, store, store.replace_rows)),
    )
    timeout_s = config.control_plane_timeout_ms / 1000
    return tuple(
        Feed(source,
             feed_fetcher(source.url, proxy=config.proxy_for(source.url), tls=tls,
                          timeout_s=timeout_s, max_bytes=_LARGEST_FEED_BYTES),
             _saved_feed(config, source, shared), clock)
        for source in sources)


def _saved_feed(config: Config, source: FeedSource[Any],
                shared: pathlib.Path | None) -> SavedFeed | None:
    if config.state_dir:
        directory, max_bytes = pathlib.Path(config.state_dir), _LARGEST_FEED_BYTES
    elif shared:
        directory, max_bytes = shared, _LARGEST_IN_MEMORY_BYTES
    else:
        return None
    return SavedFeed(directory, source.name, source.url, max_bytes)


def _take(store: SnapshotStore, replace: Callable[[Any, float], None], content: Any,
          age_s: float) -> None:
    replace(content, age_s)
    _show(store)


def _show(store: SnapshotStore) -> None:
    snapshot, allowlist = store.snapshot, store.allowlist
    metrics.show_picture(
        len(snapshot.candidates) if snapshot else 0, snapshot.taken_at if snapshot else None,
        len(allowlist.ids) if allowlist else 0, allowlist.taken_at if allowlist else None)

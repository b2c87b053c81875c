"""Builds the application of one worker and connects its parts.

Source: specs/001 R1.
"""

import dataclasses
import functools
import pathlib
import resource
import secrets
import ssl
import time
from collections.abc import Callable
from typing import Any

from flask import Flask

from app import metrics
from app.config import BALANCED, Config, runtime_directory, started_at
from app.control.changes import CatalogueChanges, Eligibility
from app.control.feed_client import feed_fetcher
from app.control.feeds import Feed, FeedSource
from app.control.saved import SavedFeed
from app.control.scheduler import PeriodicJob
from app.control.schemas import parse_models, parse_utilization
from app.cooling.records import HostRecords
from app.cooling.session import Cooling
from app.dialing.dialer import Dialer
from app.dialing.names import Names
from app.eventloop import pause
from app.inflight import InFlight
from app.journal import CAUSES
from app.open_requests import OpenRequests
from app.routes.application import Application
from app.routes.chat import Completions
from app.routes.cors import Cors
from app.routes.deciding import Deciding
from app.routes.explain import Explain
from app.routes.health import Health
from app.routes.metrics import Metrics
from app.routes.models import Models
from app.routes.status import Status
from app.routing.client_key import ClientKeys
from app.routing.cooling import CoolingSettings
from app.routing.failover_limits import Limits, RetryBudget
from app.routing.outcomes import Blame, Failure
from app.routing.view import View, Views
from app.seen.history import History
from app.seen.memory import Memory
from app.shared.directory import is_private
from app.sticky.session import Stickiness
from app.sticky.sqlite import SqliteStickyStore
from app.sticky.store import NoStickiness, StickyStore
from app.upstream.endpoint import Endpoint
from app.upstream.failover import Attempts, Sender
from app.upstream.pool import Pool
from app.upstream.tls import trusting
from app.upstream.transport import Transport
from app.upstream.waiting import Waiting

_MAX_FEED_BYTES = 8 * 1024 * 1024
# Ten times the real feeds. A container's shared memory may be 64 MiB in all.
_MAX_SHARED_FEED_BYTES = 5 * 1024 * 1024
# Upstreams keep idle connections for some seconds or more.
_DROP_STALE_EVERY_S = 5.0
# How long removed files stay unnoticed; and Redis, where none could be reached.
_KEEP_EVERY_S = 1.0


@dataclasses.dataclass(frozen=True)
class Router:
    """The running parts of one worker; `app.extensions["router"]` holds it.

    head_timeout_s     from the first byte of a request's head to its last
    max_request_bytes  of a body
    fields_for_origin  what an answer to a request of an origin says of it, as header fields
    """

    views: Views
    feeds: tuple[Feed[Any], ...]
    jobs: tuple[PeriodicJob, ...]
    in_flight: InFlight
    memory: Memory
    client_write_timeout_s: float
    head_timeout_s: float
    max_request_bytes: int
    fields_for_origin: Callable[[str], list[tuple[str, str]]]

    def start(self) -> None:
        """Start what runs beside requests; called in each worker before it serves.

        What other workers have fetched is taken here: a reload leaves no moment without models.
        """
        for feed in self.feeds:
            feed.take_saved()
        for job in self.jobs:
            job.start()

    def stop(self) -> None:
        """End what `start` started."""
        for job in self.jobs:
            job.stop()
        self.memory.end()
        metrics.write_counts()


def create_app(config: Config, *, send: Sender | None = None,
               clock: Callable[[], float] = time.monotonic) -> Flask:
    """Build the application of one worker.

    config   of this process
    send     stands in for the transport
    clock    returns seconds, monotonic
    Returns  Flask app; `extensions["router"]` is its Router, not started
    """
    metrics.show_zeros({failure.reason for failure in Failure},
                       {failure.kind for failure in Failure if failure.blame is Blame.EDGE}, CAUSES)
    tls = trusting(config.ca_bundle)
    views = Views(clock, functools.partial(_show, Eligibility()), config.aliases_file.aliases,
                  pause, time.time)
    dialer = Dialer(Names(clock))
    transport = build_transport(config, tls, dialer)
    files_allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = config.max_inflight_requests.resolve(config.places(files_allowed))
    in_flight = InFlight(most, config.max_body_bytes_in_flight, clock)
    attempts = build_attempts(config, send or transport.send, most, clock)
    stickiness = build_stickiness(config, tls, dialer, clock)
    cooling = build_cooling(config, clock)
    history = build_history(clock)
    memory = Memory(history)
    health = Health(config, views, in_flight, clock)
    cors = Cors(config.cors_allow_origins)
    app = Application(in_flight, config.client_write_timeout_ms / 1000, cors)
    # FLASK_DEBUG is a variable of other programs.
    app.debug = False
    balanced = config.alias_choice == BALANCED
    open_requests = build_open_requests(views, balanced, clock)
    deciding = Deciding(config, views, stickiness, cooling, in_flight, open_requests, clock)
    app.register_blueprint(
        Completions(config, deciding, cooling, attempts, open_requests, memory, clock).blueprint())
    app.register_blueprint(Explain(deciding).blueprint())
    app.register_blueprint(Models(views).blueprint())
    app.register_blueprint(health.blueprint())
    app.register_blueprint(Metrics(views, cooling).blueprint())
    app.register_blueprint(Status(config, views, memory, health.not_ready_reason,
                                  deciding.conditions, started_at(), clock).blueprint())
    feeds = build_feeds(config, tls, dialer, views, history, clock)
    jobs = (*(feed.job() for feed in feeds),
            PeriodicJob("stale connections", transport.drop_stale, _DROP_STALE_EVERY_S),
            PeriodicJob("host memory", memory.write, _KEEP_EVERY_S),
            PeriodicJob("metric files", metrics.keep_files, _KEEP_EVERY_S),
            *[PeriodicJob("open requests", open_requests.keep, _KEEP_EVERY_S)] * balanced,
            PeriodicJob("sticky store", stickiness.store.keep, _KEEP_EVERY_S),
            PeriodicJob("cooling store", cooling.records.keep, _KEEP_EVERY_S))
    app.extensions["router"] = Router(
        views, feeds, jobs, in_flight, memory, config.client_write_timeout_ms / 1000,
        config.client_header_timeout_ms / 1000, config.max_request_bytes, cors.fields)
    return app


def build_attempts(config: Config, send: Sender, most: int,
                   clock: Callable[[], float]) -> Attempts:
    """Return what tries candidates; `most` requests may be in flight."""
    limits = Limits(config.max_attempts, config.max_edge_failures, config.failover_budget_ms / 1000)
    return Attempts(send, config.upstream_first_body_byte_timeout_ms / 1000, limits, clock,
                    Waiting(_half(most)), RetryBudget(clock), config.failover_on_capacity_429)


def build_open_requests(views: Views, shares: bool, clock: Callable[[], float]) -> OpenRequests:
    """Return what counts open requests; `shares`: with the other workers of the host."""
    shared = runtime_directory()
    return OpenRequests(views, shared / "open" if shared and shares else None, clock)


def _half(most: int) -> int:
    """Return how many requests may wait for one model; of three or fewer half would be one."""
    return most if most < 4 else most // 2


def build_transport(config: Config, tls: ssl.SSLContext, dialer: Dialer) -> Transport:
    """Return the door to the upstream."""
    endpoint = Endpoint(config.backend_base_url, config.proxy_for(config.backend_base_url), tls,
                        config.upstream_connect_timeout_ms / 1000, dialer)
    pool = Pool(endpoint, config.upstream_connection_max_idle_secs,
                config.upstream_connection_max_age_secs)
    return Transport(endpoint, pool, config.upstream_idle_timeout_ms / 1000)


def build_cooling(config: Config, clock: Callable[[], float]) -> Cooling:
    """Return what sets models aside after failures."""
    settings = CoolingSettings(
        config.cooldown_secs, config.cooldown_max_secs, config.cooldown_failures)
    records = HostRecords(runtime_directory() if config.cooldown_secs else None, clock)
    return Cooling(records, settings, config.upstream_first_body_byte_timeout_ms / 1000, clock)


def build_stickiness(config: Config, tls: ssl.SSLContext, dialer: Dialer,
                     clock: Callable[[], float]) -> Stickiness:
    """Return what knows clients and keeps their choices."""
    trusted = config.trusted_proxy_cidrs if config.trust_proxy_headers else None
    keys = ClientKeys(config.sticky_hash_secret or secrets.token_hex(), trusted,
                      config.sticky_session_headers)
    return Stickiness(_sticky_store(config, tls, dialer, clock), keys)


def _sticky_store(config: Config, tls: ssl.SSLContext, dialer: Dialer,
                  clock: Callable[[], float]) -> StickyStore:
    if not config.sticky_ttl_secs or not config.sticky_max_entries:
        return NoStickiness()
    shared = runtime_directory()
    path = shared / "choices.sqlite" if shared else pathlib.Path(":memory:")
    host_store = SqliteStickyStore(path, config.sticky_ttl_secs, config.sticky_max_entries, clock)
    if not config.sticky_url:
        return host_store
    # Here alone: redis brings asyncio and more along, 7 MB in each worker.
    from app.sticky.redis import RedisStickyStore
    return RedisStickyStore(config.sticky_url, tls, dialer, config.sticky_ttl_secs, host_store,
                            clock)


def build_history(clock: Callable[[], float]) -> History:
    """Return what remembers what the workers of the host see."""
    shared = runtime_directory()
    return History(shared / "seen.sqlite" if shared else pathlib.Path(":memory:"), clock, time.time)


def build_feeds(config: Config, tls: ssl.SSLContext, dialer: Dialer, views: Views,
                history: History, clock: Callable[[], float]) -> tuple[Feed[Any], ...]:
    """Return the two feeds, which replace the view."""
    shared = runtime_directory()
    changes = CatalogueChanges(views, shared / "catalogue.json" if shared else None,
                               lambda: shared is None or is_private(shared),
                               history.catalogue_changed)
    sources: tuple[FeedSource[Any], ...] = (
        FeedSource("models", config.models_url, config.models_refresh_ms / 1000, parse_models,
                   changes.take),
        FeedSource("utilization", config.utilization_url, config.utilization_refresh_ms / 1000,
                   parse_utilization, views.take_rows),
    )
    return tuple(Feed(source, feed_fetcher(
        source.url, proxy=config.proxy_for(source.url), tls=tls, dialer=dialer,
        timeout_s=config.control_plane_timeout_ms / 1000, max_bytes=_MAX_FEED_BYTES),
        _saved_feed(config, source), clock, history.feed_failed) for source in sources)


def _saved_feed(config: Config, source: FeedSource[Any]) -> SavedFeed | None:
    shared = runtime_directory()
    if config.state_dir:
        directory, max_bytes = pathlib.Path(config.state_dir), _MAX_FEED_BYTES
    elif shared:
        directory, max_bytes = shared, _MAX_SHARED_FEED_BYTES
    else:
        return None
    # A STATE_DIR may belong to another user; the runtime directory is this user's, or none.
    return SavedFeed(directory, source.name, source.url, max_bytes,
                     usable=lambda: bool(config.state_dir) or is_private(directory))


def _show(eligibility: Eligibility, view: View) -> None:
    """Set this worker's gauges to a new view, and tell of one without an eligible model."""
    eligibility.look(view)
    catalogue, snapshot = view.catalogue, view.snapshot
    metrics.show_view(
        len(snapshot.ranking.candidates) if snapshot else 0,
        snapshot.taken_at if snapshot else None,
        len(catalogue.ids) if catalogue else 0, catalogue.taken_at if catalogue else None,
        snapshot.as_of if snapshot else None)

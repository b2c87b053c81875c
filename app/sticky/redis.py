"""Sticky choices shared by all replicas, in Redis or Valkey.

A request asks Redis once: GETEX reads an entry and renews its life, and an unchanged choice is not
written. All calls for one request share one deadline. Connections are opened beside requests
(redis_connections.py). After failures in a row Redis is not asked for a while. The host's own store
takes every write too, so it can answer whenever Redis does not answer or has no entry. Redis then
learns the choice from the next success.

The value of an entry is the model. Where a list's failover made the choice, a line follows with the
seconds since 1970 of that moment. An earlier version takes such a value for a model that is no
candidate, and writes the next success over it.

Source: specs/005 R9, R10, R17.
"""

import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

import redis

from app.dialing.dialer import Dialer
from app.eventloop import Deadline
from app.logs import StateChange
from app.metrics import count, sticky_errors_total
from app.sticky.redis_connections import MAX_CONNECTIONS, RedisConnections, has_answered
from app.sticky.store import StickyChoice, StickyStore

logger = logging.getLogger(__name__)

# For all calls of one request together.
DEADLINE_S = 0.05
# A request may get a connection late, or its turn to read the answer. Redis counts as silent only
# if it has had this much time and has sent nothing.
_FAIR_S = DEADLINE_S / 2
# After this many failures in a row Redis is not asked for one second, then for twice as long each
# time.
_FAILURES_TO_PAUSE = 3
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 8.0
# A node of a cluster has a part of the keys, and goes on having it.
_CLUSTER_PAUSE_S = 60.0
_CLUSTER = ("this is a node of a Redis Cluster, which has a part of the keys; STICKY_URL must name "
            "a Redis that has all of them")
_CLUSTER_ERRORS = (redis.exceptions.MovedError, redis.exceptions.AskError,
                   redis.exceptions.ClusterDownError)
PREFIX = "chutes-autopilot:sticky:"
# Deletes an entry only if it still names the model that failed.
_DISCARD = ("local value = redis.call('GET', KEYS[1]); "
            "if value and string.match(value, '^[^\\n]*') == ARGV[1] "
            "then redis.call('DEL', KEYS[1]) end")
# What GETEX does, for a Redis before 6.2.
_READ = ("local model = redis.call('GET', KEYS[1]); "
         "if model then redis.call('EXPIRE', KEYS[1], ARGV[1]) end; return model")


class _TooLate(Exception):
    """A call did not return before the deadline."""


class RedisStickyStore:
    """Entries in Redis, and in the host's store for when Redis cannot be asked.

    url         redis://, rediss:// or unix://
    tls         context for rediss://
    dialer      connects to a host
    ttl_s       life of an entry since its last use, whole seconds
    host_store  takes every write too
    clock       returns seconds, monotonic
    wall_clock  returns seconds since 1970
    """

    def __init__(self, url: str, tls: ssl.SSLContext, dialer: Dialer, ttl_s: int,
                 host_store: StickyStore, clock: Callable[[], float],
                 wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._ttl_s = ttl_s
        self._host_store = host_store
        self._clock = clock
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._paused_until = 0.0
        self._calls = 0
        self._has_getex = True
        self._answers, self._cluster = (
            StateChange(logger, "sticky store", store="distributed", kind=kind)
            for kind in ("failing", "cluster"))
        # One for each command: a Redis that is full refuses writes and answers reads.
        self._refusals = {command: StateChange(
            logger, "sticky store", store="distributed", kind="refusing", command=command)
            for command in ("read", "write", "discard")}
        self._connections = RedisConnections(url, tls, dialer, self._not_opened, clock)

    def get(self, client_key: str) -> StickyChoice:
        """Look up a client's model. Cost: one round trip, at most DEADLINE_S."""
        return self._looked_up(client_key, self._read, renews=True)

    def look(self, client_key: str) -> StickyChoice:
        """Look up a client's model without renewing its life. Cost: as that of `get`."""
        return self._looked_up(client_key, _look, renews=False)

    def _looked_up(self, client_key: str, read: Callable[[Any, str], Any],
                   renews: bool) -> StickyChoice:
        choice = StickyChoice()
        worked, value = self._ask(choice, "read", read, PREFIX + client_key)
        if worked and isinstance(value, str):
            choice.model, _, moved = value.partition("\n")
            choice.renewed, choice.moved_at = renews, self._moved_at(moved)
        else:
            kept = self._host_store.look(client_key)
            choice.model, choice.moved_at = kept.model, kept.moved_at
        return choice

    def put(self, client_key: str, model: str, choice: StickyChoice,
            by_list: bool = False) -> None:
        """Keep `model` for the client; its life starts anew."""
        self._host_store.put(client_key, model, choice, by_list)
        if choice.renewed and choice.model == model and not by_list:
            return
        moved_at = choice.moved_at if choice.model == model else None
        if by_list:
            moved_at = self._clock()
        value = model
        if moved_at is not None:
            value += f"\n{self._wall_clock() - (self._clock() - moved_at):.3f}"
        self._ask(choice, "write", _call, "SET", PREFIX + client_key, value, "EX", self._ttl_s)

    def _moved_at(self, text: str) -> float | None:
        """Return a moment on this host's monotonic clock; None where it cannot be read.

        The other replica's wall clock may be ahead: what it says of the future is now.
        """
        with contextlib.suppress(ValueError):
            return self._clock() - max(self._wall_clock() - float(text), 0.0)
        return None

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice.model`."""
        self._host_store.discard(client_key, choice)
        self._ask(choice, "discard", _call, "EVAL", _DISCARD, 1, PREFIX + client_key, choice.model)

    def keep(self) -> None:
        """Replace old connections. Cost: I/O; switches greenlets."""
        self._host_store.keep()
        self._connections.keep()

    def close(self) -> None:
        """Close the connections to Redis."""
        self._connections.close()

    def _read(self, connection: Any, key: str) -> Any:
        if self._has_getex:
            try:
                return _call(connection, "GETEX", key, "EX", self._ttl_s)
            except redis.ResponseError as error:
                if not str(error).lower().startswith("unknown command"):
                    raise
                self._has_getex = False
        return _call(connection, "EVAL", _READ, 1, key, self._ttl_s)

    def _ask(self, choice: StickyChoice, command: str, call: Callable[..., Any],
             *words: object) -> tuple[bool, Any]:
        """Return whether `call(connection, *words)` worked, and its answer."""
        started, left_s = self._clock(), DEADLINE_S - choice.spent_s
        if self._calls >= MAX_CONNECTIONS or left_s <= 0 or self._paused(started):
            return False, None
        self._calls += 1
        connection, taken_at = None, started
        try:
            with Deadline(left_s, _TooLate):
                connection = self._connections.take()
                if connection is None:
                    return False, None
                taken_at = self._clock()
                answer = call(connection, *words)
        except redis.ResponseError as error:
            # Redis is up but refuses: out of memory, read-only, a key of another type.
            self._connections.give_back(connection)
            self._refused(command, error)
            return False, None
        except BaseException as error:
            # Its answer may still come. What is no answer makes the library raise anything.
            blamed = not isinstance(error, _TooLate) or self._is_silent(connection, taken_at)
            if connection is not None:
                self._connections.drop(connection)
            if not isinstance(error, Exception):
                raise
            if blamed:
                self._count(error)
                self._failed(error)
            return False, None
        finally:
            self._calls -= 1
            choice.spent_s += self._clock() - started
        self._connections.give_back(connection)
        self._failures, self._pause_s = 0, _FIRST_PAUSE_S
        self._answers.working()
        self._refusals[command].working()
        return True, answer

    def _is_silent(self, connection: Any, taken_at: float) -> bool:
        return (connection is not None and self._clock() - taken_at >= _FAIR_S
                and not has_answered(connection))

    def _refused(self, command: str, error: redis.ResponseError) -> None:
        self._count(error)
        if isinstance(error, _CLUSTER_ERRORS):
            # Never taken back: the node answers for the keys that it has.
            self._cluster.failing(_CLUSTER)
            self._failures, self._pause_s = _FAILURES_TO_PAUSE, _MAX_PAUSE_S
            self._paused_until = self._clock() + _CLUSTER_PAUSE_S
        else:
            self._refusals[command].failing(type(error).__name__)

    def _not_opened(self, error: Exception) -> None:
        self._count(error)
        self._answers.failing(type(error).__name__)

    def _paused(self, now: float) -> bool:
        if self._failures < _FAILURES_TO_PAUSE:
            return False
        if now < self._paused_until:
            return True
        # This request tries; the requests that come meanwhile do not.
        self._paused_until = now + self._pause_s
        return False

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_PAUSE:
            self._answers.failing(type(error).__name__)
            self._paused_until = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    @staticmethod
    def _count(error: Exception) -> None:
        count(sticky_errors_total, "distributed")
        logger.debug("sticky store call failed", extra={"why": type(error).__name__})


def _look(connection: Any, key: str) -> Any:
    return _call(connection, "GET", key)


def _call(connection: Any, *words: object) -> Any:
    """Send one command and return its answer."""
    connection.send_command(*words)
    # The caller closes a connection that failed; whether an answer has come can be seen until then.
    return connection.read_response(disconnect_on_error=False)

"""Sticky choices shared by all replicas, in Redis or Valkey.

Redis is asked once a request: reading an entry starts its life anew, and a choice that has not
changed is not written. Every call has a hard deadline. While Redis is away a breaker keeps from
asking, and the embedded store serves this host; it also serves where Redis knows nothing, so
that what was chosen while Redis was away, or full, still holds.

Source: specs/005 R9.
"""

import logging
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.eventloop import deadline
from app.metrics import sticky_errors_total
from app.sticky.store import StickyStore

logger = logging.getLogger(__name__)

# No call may keep a request for longer.
DEADLINE_S = 0.05
# How long Redis is left alone after a failure; then one request tries.
_PAUSE_S = 1.0
_PREFIX = "chutes-autopilot:sticky:"
# Deletes an entry only if it still names the model that failed.
_DISCARD = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class _TooLate(Exception):
    """A call did not return in time."""


class DistributedStickyStore:
    """Entries in Redis, with another store for when it cannot be asked.

    url       redis://, rediss:// or unix://
    ttl_s     life of an entry since its last use, whole seconds
    embedded  the store of this host
    clock     returns seconds, monotonic
    """

    def __init__(self, url: str, ttl_s: int, embedded: StickyStore,
                 clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._embedded = embedded
        self._clock = clock
        self._asked_again_at = 0.0
        self._failing = False
        self._redis = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=DEADLINE_S,
            socket_connect_timeout=DEADLINE_S, retry=Retry(NoBackoff(), 0))
        self._discard: Any = self._redis.register_script(_DISCARD)

    def get(self, client_key: str) -> str | None:
        """Return the client's model, or None if there is no live entry.

        Cost: one round trip, at most DEADLINE_S.
        """
        worked, model = self._ask(
            lambda: self._redis.getex(_PREFIX + client_key, ex=self._ttl_s))
        if worked and isinstance(model, str):
            return model
        return self._embedded.get(client_key)

    def put(self, client_key: str, model: str, known: str | None) -> None:
        """Keep `model` for the client; its life starts anew."""
        if model == known and not self._failing:
            return
        worked, _ = self._ask(
            lambda: self._redis.set(_PREFIX + client_key, model, ex=self._ttl_s))
        if not worked:
            self._embedded.put(client_key, model, known)

    def discard(self, client_key: str, model: str) -> None:
        """Forget the client's entry if it names `model`."""
        self._ask(lambda: self._discard(keys=[_PREFIX + client_key], args=[model]))
        self._embedded.discard(client_key, model)

    def close(self) -> None:
        """Close the connections to Redis."""
        self._redis.close()

    def _ask(self, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Return whether a call worked, and its answer."""
        now = self._clock()
        if self._failing and now < self._asked_again_at:
            return False, None
        # Whoever comes while this one tries is not made to wait as well.
        self._asked_again_at = now + _PAUSE_S
        try:
            with deadline(DEADLINE_S, _TooLate()):
                answer = call()
        except redis.ResponseError as error:
            # It answers, but will not do this: out of memory, read-only, another type of key.
            self._count(error)
            return False, None
        except Exception as error:
            # Whatever else: a client library fed garbage may raise anything at all.
            self._count(error)
            self._say(failing=True, why=type(error).__name__)
            return False, None
        self._say(failing=False, why="")
        return True, answer

    @staticmethod
    def _count(error: Exception) -> None:
        sticky_errors_total.labels("distributed").inc()
        logger.debug("sticky store call failed", extra={"why": type(error).__name__})

    def _say(self, failing: bool, why: str) -> None:
        if failing is not self._failing:
            self._failing = failing
            logger.log(logging.WARNING if failing else logging.INFO, "sticky store",
                       extra={"store": "distributed", "failing": failing, "why": why})

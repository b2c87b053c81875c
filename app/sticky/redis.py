"""Sticky choices shared by all replicas, in Redis or Valkey.

A request asks Redis once: GETEX reads an entry and renews its life, and an unchanged choice is not
written. All calls for one request share one deadline. After failures in a row Redis is not asked
for a while. The host's own store takes every write too, so it can answer whenever Redis does not
answer or has no entry. Redis then learns the choice from the next success.

Source: specs/005 R9.
"""

import logging
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.eventloop import Deadline
from app.logs import StateChange
from app.metrics import count, sticky_errors_total
from app.sticky.store import StickyChoice, StickyStore

logger = logging.getLogger(__name__)

# For all calls of one request together.
DEADLINE_S = 0.05
# After this many failures in a row Redis is not asked for one second, then for twice as long each
# time. Look-ups of a name that does not resolve would fill the threads the upstream's name needs.
_FAILURES_TO_PAUSE = 3
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 8.0
# Calls under way in this worker; a request beyond them uses the host's store and does not wait.
_MAX_CALLS = 32
_PREFIX = "chutes-autopilot:sticky:"
# Deletes an entry only if it still names the model that failed.
_DISCARD = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class _TooLate(Exception):
    """A call did not return before the deadline."""


class RedisStickyStore:
    """Entries in Redis, and in the host's store for when Redis cannot be asked.

    url         redis://, rediss:// or unix://
    ttl_s       life of an entry since its last use, whole seconds
    host_store  takes every write too
    clock       returns seconds, monotonic
    """

    def __init__(self, url: str, ttl_s: int, host_store: StickyStore,
                 clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._host_store = host_store
        self._clock = clock
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._paused_until = 0.0
        self._calls = 0
        self._answers, self._writes = (
            StateChange(logger, "sticky store", store="distributed", kind=kind)
            for kind in ("failing", "refusing"))
        # RESP 2 and no CLIENT SETINFO: a new connection sends nothing before its first command.
        self._redis = redis.Redis.from_url(
            url, decode_responses=True, encoding_errors="replace", protocol=2, driver_info=None,
            socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S,
            retry=Retry(NoBackoff(), 0))
        self._discard: Any = self._redis.register_script(_DISCARD)

    def get(self, client_key: str) -> StickyChoice:
        """Look up a client's model. Cost: one round trip, at most DEADLINE_S."""
        choice = StickyChoice()
        worked, model = self._ask(
            choice, lambda: self._redis.getex(_PREFIX + client_key, ex=self._ttl_s))
        if worked and isinstance(model, str):
            choice.model, choice.renewed = model, True
        else:
            choice.model = self._host_store.get(client_key).model
        return choice

    def put(self, client_key: str, model: str, choice: StickyChoice) -> None:
        """Keep `model` for the client; its life starts anew."""
        self._host_store.put(client_key, model, choice)
        if choice.renewed and choice.model == model:
            return
        worked, _ = self._ask(
            choice, lambda: self._redis.set(_PREFIX + client_key, model, ex=self._ttl_s))
        if worked:
            self._writes.working()

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice.model`."""
        self._host_store.discard(client_key, choice)
        self._ask(choice, lambda: self._discard(keys=[_PREFIX + client_key], args=[choice.model]))

    def keep(self) -> None:
        """Look after the host's store."""
        self._host_store.keep()

    def close(self) -> None:
        """Close the connections to Redis."""
        self._redis.close()

    def _ask(self, choice: StickyChoice, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Return whether a call worked, and its answer."""
        started, left_s = self._clock(), DEADLINE_S - choice.spent_s
        if self._calls >= _MAX_CALLS or left_s <= 0 or self._paused(started):
            return False, None
        self._calls += 1
        try:
            with Deadline(left_s, _TooLate):
                answer = call()
        except redis.ResponseError as error:
            # Redis is up but refuses: out of memory, read-only, a key of another type.
            self._count(error)
            self._writes.failing(type(error).__name__)
            return False, None
        except Exception as error:
            # An answer that is not Redis's makes the client library raise anything at all.
            self._count(error)
            self._failed(error)
            return False, None
        finally:
            self._calls -= 1
            choice.spent_s += self._clock() - started
        self._failures, self._pause_s = 0, _FIRST_PAUSE_S
        self._answers.working()
        return True, answer

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

"""Sticky choices shared by all replicas, in Redis or Valkey.

Redis is asked once a request: reading an entry starts its life anew, and a choice that has not
changed is not written. A request has one hard deadline for all of it. While Redis is away a
breaker keeps from asking, and the embedded store, which is kept up to date all the time, serves
this host; it also serves where Redis knows nothing, and Redis is told then.

Source: specs/005 R9.
"""

import logging
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.eventloop import Deadline
from app.metrics import count, sticky_errors_total
from app.sticky.store import StickyChoice, StickyStore

logger = logging.getLogger(__name__)

# What all calls for one request may take together.
DEADLINE_S = 0.05
# So many failures in a row, and Redis is left alone: for a second, then for twice as long each
# time, up to the limit. Longer pauses also keep a name that does not resolve from filling the
# threads that look up the upstream's.
_FAILURES = 3
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 8.0
# Calls at once in a worker; whoever comes on top does without Redis rather than wait.
_MOST_AT_ONCE = 32
_PREFIX = "chutes-autopilot:sticky:"
# Deletes an entry only if it still names the model that failed.
_DISCARD = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class _TooLate(Exception):
    """A call did not return in time."""


class RedisStickyStore:
    """Entries in Redis, with another store for when it cannot be asked.

    url       redis://, rediss:// or unix://
    ttl_s     life of an entry since its last use, whole seconds
    embedded  the store of this host; it is kept up to date all the time
    clock     returns seconds, monotonic
    """

    def __init__(self, url: str, ttl_s: int, embedded: StickyStore,
                 clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._embedded = embedded
        self._clock = clock
        self._failures = 0
        self._pause_s = _PAUSE_S
        self._asked_again_at = 0.0
        self._at_once = 0
        self._refusing = False
        # As little talk as can be before the first command: each word of it is a round trip.
        self._redis = redis.Redis.from_url(
            url, decode_responses=True, encoding_errors="replace", protocol=2, driver_info=None,
            socket_timeout=DEADLINE_S, socket_connect_timeout=DEADLINE_S,
            retry=Retry(NoBackoff(), 0))
        self._discard: Any = self._redis.register_script(_DISCARD)

    def get(self, client_key: str) -> StickyChoice:
        """Look a client up. Cost: one round trip, at most DEADLINE_S."""
        choice = StickyChoice()
        worked, model = self._ask(
            choice, lambda: self._redis.getex(_PREFIX + client_key, ex=self._ttl_s))
        if worked and isinstance(model, str):
            choice.model, choice.renewed = model, True
        else:
            choice.model = self._embedded.get(client_key).model
        return choice

    def put(self, client_key: str, model: str, choice: StickyChoice) -> None:
        """Keep `model` for the client; its life starts anew."""
        self._embedded.put(client_key, model, choice)
        if choice.renewed and choice.model == model:
            return
        worked, _ = self._ask(
            choice, lambda: self._redis.set(_PREFIX + client_key, model, ex=self._ttl_s))
        if worked:
            self._say_refusing(False, "")

    def discard(self, client_key: str, choice: StickyChoice) -> None:
        """Forget the client's entry if it still names `choice`."""
        self._embedded.discard(client_key, choice)
        self._ask(choice, lambda: self._discard(keys=[_PREFIX + client_key], args=[choice.model]))

    def close(self) -> None:
        """Close the connections to Redis."""
        self._redis.close()

    def _ask(self, choice: StickyChoice, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Return whether a call worked, and its answer."""
        started, left_s = self._clock(), DEADLINE_S - choice.spent_s
        if self._at_once >= _MOST_AT_ONCE or left_s <= 0 or not self._may_ask(started):
            return False, None
        self._at_once += 1
        try:
            with Deadline(left_s, _TooLate):
                answer = call()
        except redis.ResponseError as error:
            # It answers, but will not do this: out of memory, read-only, another type of key.
            self._count(error)
            self._say_refusing(True, type(error).__name__)
            return False, None
        except Exception as error:
            # Whatever else: a client library fed garbage may raise anything at all.
            self._count(error)
            self._failed(type(error).__name__)
            return False, None
        finally:
            self._at_once -= 1
            choice.spent_s += self._clock() - started
        self._worked()
        return True, answer

    def _may_ask(self, now: float) -> bool:
        if self._failures < _FAILURES:
            return True
        if now < self._asked_again_at:
            return False
        # Whoever comes while this one tries is not made to wait as well.
        self._asked_again_at = now + self._pause_s
        return True

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures == _FAILURES:
            self._say("failing", True, why)
        if self._failures >= _FAILURES:
            self._asked_again_at = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _worked(self) -> None:
        if self._failures >= _FAILURES:
            self._say("failing", False, "")
        self._failures, self._pause_s = 0, _PAUSE_S

    def _say_refusing(self, refusing: bool, why: str) -> None:
        if refusing is not self._refusing:
            self._refusing = refusing
            self._say("refusing", refusing, why)

    @staticmethod
    def _count(error: Exception) -> None:
        count(sticky_errors_total, "distributed")
        logger.debug("sticky store call failed", extra={"why": type(error).__name__})

    @staticmethod
    def _say(kind: str, failing: bool, why: str) -> None:
        logger.log(logging.WARNING if failing else logging.INFO, "sticky store", extra={
            "store": "distributed", "kind": kind, "failing": failing, "why": why})

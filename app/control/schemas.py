"""What the two feeds must look like, as marshmallow schemas.

The feeds come from outside and one bad row must not cost the others: rows are loaded one by one,
and those that do not fit are counted and dropped.

Source: specs/003 R2, R3, R9.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import marshmallow
import msgspec
from marshmallow import Schema, ValidationError, fields

from app.errors import FetchFailed
from app.routing.ranking import PRIVATE_CHUTE, UtilizationRow

# Far above anything real; it keeps a score within what a float can hold.
_LARGEST = 10**9
# Rows loaded between two pauses: about half a millisecond of work.
_ROWS_AT_A_TIME = 16


# A name comes back in a response header, and in log lines.
_VISIBLE = marshmallow.validate.Regexp(r"[\x20-\x7e]+\Z")


class _Quantity(fields.Field[float]):
    """A JSON number, finite and not negative; `fields.Float` would also take "1" and true."""

    kinds: tuple[type[int] | type[float], ...] = (int, float)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        # NaN is not within any bounds, and infinity is beyond these.
        if (isinstance(value, bool) or not isinstance(value, self.kinds)
                or not 0 <= value <= _LARGEST):
            raise ValidationError("not a finite number of at least 0")
        return value


class _Count(_Quantity):
    kinds = (int,)


class _Flag(fields.Field[bool]):
    """A JSON boolean; `fields.Boolean` would also take "yes" and 1."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("not a boolean")
        return value


class _UtilizationRowSchema(Schema):
    class Meta:
        unknown = marshmallow.EXCLUDE

    name = fields.String(required=True, validate=_VISIBLE)
    active_instance_count = _Count(required=True)
    utilization_current = _Quantity(allow_none=True)
    utilization_5m = _Quantity(allow_none=True)
    utilization_15m = _Quantity(allow_none=True)
    utilization_1h = _Quantity(allow_none=True)
    rate_limit_ratio_5m = _Quantity(allow_none=True)
    rate_limit_ratio_15m = _Quantity(allow_none=True)
    rate_limit_ratio_1h = _Quantity(allow_none=True)
    scalable = _Flag(allow_none=True)
    scale_allowance = _Quantity(allow_none=True)


class _ModelSchema(Schema):
    class Meta:
        unknown = marshmallow.EXCLUDE

    id = fields.String(required=True, validate=_VISIBLE)


_row_schema = _UtilizationRowSchema()
_model_schema = _ModelSchema()


def parse_utilization(document: bytes,
                      pause: Callable[[], None]) -> tuple[tuple[UtilizationRow, ...], int]:
    """Read the utilization feed.

    document  a JSON array of rows
    pause     called between slices of rows, so that a long feed does not hold the event loop
    Returns   the usable public rows, and how many rows were dropped as bad
    Raises    FetchFailed when no row is usable
    Cost      for the 538 rows of the real feed 4 ms, of which 1 ms at most in one piece

    Source: specs/003 R2, R3.
    """
    entries = _decode(document)
    if not isinstance(entries, list):
        raise FetchFailed("not an array")
    # Private chutes are four rows of five in the real feed and never eligible.
    public = [entry for entry in entries if not _is_private(entry)]
    rows, dropped = _load_all(_row_schema, public, pause)
    if dropped == len(entries):
        raise FetchFailed("no usable row")
    return tuple(UtilizationRow(**row) for row in rows), dropped


def parse_models(document: bytes, pause: Callable[[], None]) -> tuple[frozenset[str], int]:
    """Read the models feed.

    document  a JSON object with the models in `data`
    pause     as in parse_utilization
    Returns   the model ids, and how many entries were dropped as bad
    Raises    FetchFailed when there is no model: an allowlist once fetched is never empty

    Source: specs/003 R9.
    """
    feed = _decode(document)
    if not isinstance(feed, dict) or not isinstance(feed.get("data"), list):
        raise FetchFailed("not an object with a data array")
    models, dropped = _load_all(_model_schema, feed["data"], pause)
    if not models:
        raise FetchFailed("no model")
    return frozenset(model["id"] for model in models), dropped


def _decode(document: bytes) -> Any:
    try:
        return msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        # msgspec is three times as fast; the standard library takes the NaN that a feed made
        # in Python may hold, of which one row is to be dropped and not the feed.
        return json.loads(document)
    except (ValueError, RecursionError):
        raise FetchFailed("not JSON") from None


def _is_private(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("name") == PRIVATE_CHUTE


def _load_all(schema: Schema, entries: list[Any],
              pause: Callable[[], None]) -> tuple[list[dict[str, Any]], int]:
    loaded: list[dict[str, Any]] = []
    for start in range(0, len(entries), _ROWS_AT_A_TIME):
        loaded.extend(_loaded(schema, entries[start:start + _ROWS_AT_A_TIME]))
        pause()
    return loaded, len(entries) - len(loaded)


def _loaded(schema: Schema, entries: Iterable[Any]) -> Iterable[dict[str, Any]]:
    for entry in entries:
        try:
            yield schema.load(entry)
        except ValidationError:
            continue

"""The two feeds as marshmallow schemas.

The feeds come from outside, and one bad row must not cost the others. Each row is loaded by itself;
a row that does not match the schema is dropped and counted.

Source: specs/003 R2, R3, R9.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import marshmallow
import msgspec
from marshmallow import Schema, ValidationError, fields

from app.errors import FetchFailed
from app.routing.catalogue import Model
from app.routing.ranking import PRIVATE_CHUTE, UtilizationRow

# Far above any real value. It keeps scores within the range of a float.
_MAX_QUANTITY = 10**9
# Rows loaded between two pauses; they take about 0.5 ms.
_ROWS_PER_SLICE = 16
# A name is sent in a response header and written to log lines.
_VISIBLE = marshmallow.validate.Regexp(r"[\x20-\x7e]+\Z")


class _Quantity(fields.Field[float]):
    """A JSON number from 0 to _MAX_QUANTITY; `fields.Float` would also take "1" and true."""

    kinds: tuple[type[int] | type[float], ...] = (int, float)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        # NaN compares false with both bounds; infinity is above the upper one.
        if (isinstance(value, bool) or not isinstance(value, self.kinds)
                or not 0 <= value <= _MAX_QUANTITY):
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


class _Words(fields.Field[frozenset[str]]):
    """An array of strings."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> frozenset[str]:
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ValidationError("not an array of strings")
        return frozenset(value)


class _ModelSchema(Schema):
    class Meta:
        unknown = marshmallow.EXCLUDE

    id = fields.String(required=True, validate=_VISIBLE)
    context_length = _Count()
    max_model_len = _Count()
    max_output_length = _Count()
    supported_features = _Words()
    input_modalities = _Words()
    confidential_compute = _Flag()


class _ModelsFeed(msgspec.Struct):
    data: list[msgspec.Raw]


_row_schema = _UtilizationRowSchema()
_model_schema = _ModelSchema()


def parse_utilization(document: bytes,
                      pause: Callable[[], None]) -> tuple[tuple[UtilizationRow, ...], int]:
    """Parse the utilization feed.

    document  JSON array of rows
    pause     called after each slice of rows to let other greenlets run
    Returns   the valid public rows, and the number of rows dropped as bad
    Raises    FetchFailed if it is not an array, is empty, or has only bad rows
    Cost      4 ms for a feed of 538 rows, at most 1 ms between two pauses

    Source: specs/003 R2, R3.
    """
    entries = _decode(document)
    if not isinstance(entries, list):
        raise FetchFailed("not an array")
    # Private chutes are never eligible, and they are four fifths of the rows.
    public = [entry for entry in entries if not _is_private(entry)]
    rows, dropped = _load_all(_row_schema, public, pause)
    if dropped == len(entries):
        raise FetchFailed("no usable row")
    return tuple(UtilizationRow(**row) for row in rows), dropped


def parse_models(document: bytes, pause: Callable[[], None]) -> tuple[tuple[Model, ...], int]:
    """Parse the models feed.

    document  JSON object with an array of models in `data`
    pause     as in parse_utilization
    Returns   the models, and the number of entries dropped as bad
    Raises    FetchFailed without a valid model: a fetched allowlist is never empty

    Source: specs/003 R9, R20.
    """
    models, entries = list[Model](), _model_entries(document)
    for number, entry in enumerate(entries, 1):
        with contextlib.suppress(ValidationError, FetchFailed):
            models.append(_model(bytes(entry)))
        if number % _ROWS_PER_SLICE == 0:
            pause()
    if not models:
        raise FetchFailed("no model")
    return tuple(models), len(entries) - len(models)


def _model_entries(document: bytes) -> list[msgspec.Raw]:
    """Return the entries of `data` as they stand in the document."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(document, type=_ModelsFeed).data
    try:
        # Python writes NaN, which few clients can read: the entries are written anew without it.
        feed = json.loads(document, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise FetchFailed("not JSON") from None
    if not isinstance(feed, dict) or not isinstance(feed.get("data"), list):
        raise FetchFailed("not an object with a data array")
    return [msgspec.Raw(json.dumps(entry).encode()) for entry in feed["data"]]


def _model(entry: bytes) -> Model:
    """Return the model that an entry describes; a bad value costs no more than itself.

    Raises  ValidationError, FetchFailed: it has no usable id, or is not JSON
    """
    try:
        declared = _model_schema.load(_decode(entry))
    except ValidationError as error:
        declared = error.valid_data
        if not isinstance(declared, dict) or "id" not in declared:
            raise
    features = declared.get("supported_features")
    if features is not None and "structured_output" in features:
        # It is spelled both ways.
        features |= {"structured_outputs"}
    return Model(
        declared["id"], entry,
        context_length=declared.get("context_length") or declared.get("max_model_len") or None,
        max_output_length=declared.get("max_output_length"), features=features,
        inputs=declared.get("input_modalities"),
        confidential=declared.get("confidential_compute"))


def _decode(document: bytes) -> Any:
    # msgspec is three times as fast as json, but refuses a document with a NaN. Python writes NaN,
    # and it must cost one row and not the feed.
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(document)
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        raise FetchFailed("not JSON") from None


def _is_private(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("name") == PRIVATE_CHUTE


def _load_all(schema: Schema, entries: list[Any],
              pause: Callable[[], None]) -> tuple[list[dict[str, Any]], int]:
    loaded: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, 1):
        with contextlib.suppress(ValidationError):
            loaded.append(schema.load(entry))
        if number % _ROWS_PER_SLICE == 0:
            pause()
    return loaded, len(entries) - len(loaded)

"""The two feeds as marshmallow schemas.

The feeds come from outside, and one bad row must not cost the others. Each row is loaded by itself;
a row that does not match the schema is dropped and counted.

Whatever a feed holds, the event loop must not stand still for long. The document is first split
into its entries, which builds nothing; then the entries are decoded a few at a time.

Source: specs/003 R2, R3, R9, R13, R61.
"""

import collections
import datetime
from collections.abc import Callable
from typing import Any

import marshmallow
import msgspec
from marshmallow import Schema, ValidationError, fields

from app.control.documents import decode, entries_of, split
from app.errors import FetchFailed
from app.routing.catalogue import Model
from app.routing.ranking import PRIVATE_CHUTE, UtilizationRow
from app.schema_fields import Flag

# Far above any real value. It keeps scores within the range of a float.
_MAX_QUANTITY = 10**9
# What is decoded between two pauses: rows of the real feed take about 0.5 ms.
_ENTRIES_PER_SLICE = 16
_BYTES_PER_SLICE = 64 * 1024
# A name is sent in a response header, written to log lines and compared with globs.
_NAME = marshmallow.validate.Regexp(r"[\x20-\x7e]{1,512}\Z")


class _Quantity(fields.Field[float]):
    """A JSON number from 0 to _MAX_QUANTITY; `fields.Float` would also take "1" and true."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        # NaN compares false with both bounds; infinity is above the upper one.
        if (isinstance(value, bool) or not isinstance(value, (int, float))
                or not 0 <= value <= _MAX_QUANTITY):
            raise ValidationError("not a finite number of at least 0")
        return value


class _Count(_Quantity):
    """A whole number; one that is written 4.0 is 4."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        number = super()._deserialize(value, *args, **kwargs)
        if number != int(number):
            raise ValidationError("not a whole number")
        return int(number)


class _Moment(fields.Field[float | None]):
    """A moment in ISO 8601, in UTC where it names no zone, as seconds since 1970; else None."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float | None:
        try:
            moment = datetime.datetime.fromisoformat(value)
            return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
        except (TypeError, ValueError):
            return None


class _UtilizationRowSchema(Schema):
    class Meta:
        unknown = marshmallow.EXCLUDE

    name = fields.String(required=True, validate=_NAME)
    active_instance_count = _Count(required=True)
    utilization_current = _Quantity(allow_none=True)
    utilization_5m = _Quantity(allow_none=True)
    utilization_15m = _Quantity(allow_none=True)
    utilization_1h = _Quantity(allow_none=True)
    rate_limit_ratio_5m = _Quantity(allow_none=True)
    rate_limit_ratio_15m = _Quantity(allow_none=True)
    rate_limit_ratio_1h = _Quantity(allow_none=True)
    scalable = Flag(allow_none=True)
    scale_allowance = _Quantity(allow_none=True)
    timestamp = _Moment(allow_none=True)


class _Words(fields.Field[frozenset[str]]):
    """An array of strings."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> frozenset[str]:
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ValidationError("not an array of strings")
        return frozenset(value)


class _ModelSchema(Schema):
    class Meta:
        unknown = marshmallow.EXCLUDE

    id = fields.String(required=True, validate=_NAME)
    context_length = _Count()
    max_model_len = _Count()
    max_output_length = _Count()
    supported_features = _Words()
    input_modalities = _Words()
    confidential_compute = Flag()


_row_schema = _UtilizationRowSchema()
_model_schema = _ModelSchema()


class _ModelsDocument(msgspec.Struct):
    data: msgspec.Raw


def parse_utilization(document: bytes,
                      pause: Callable[[], None]) -> tuple[tuple[UtilizationRow, ...], int]:
    """Parse the utilization feed.

    document  JSON array of rows
    pause     called after each slice of rows to let other greenlets run
    Returns   the valid public rows, and the number of rows dropped as bad
    Raises    FetchFailed if it is not an array, is empty, has too many rows, or has only bad rows;
              the text then says what they lack, and how many of them
    Cost      5 ms for a feed of 538 rows, at most 1 ms between two pauses; 17 ms for any 8 MiB

    Source: specs/003 R2, R3, R13.
    """
    loading = _Loading(_load_row)
    rows = loading.load_all(entries_of(document, "an array", pause), pause)
    if loading.dropped == loading.seen:
        raise FetchFailed(f"no usable row{loading.what_is_wrong()}")
    return tuple(rows), loading.dropped


def parse_models(document: bytes, pause: Callable[[], None]) -> tuple[tuple[Model, ...], int]:
    """Parse the models feed.

    document  JSON object with an array of models in `data`
    pause     as in parse_utilization
    Returns   the models, and the number of entries dropped as bad
    Raises    FetchFailed without a valid model (a fetched allowlist is never empty), with the same
              explanation as parse_utilization, or with too many models

    Source: specs/003 R9, R13, R20.
    """
    expected = "an object with a data array"
    # Python writes NaN, which few clients can read: they get the entries without it.
    feed = split(document, _ModelsDocument, expected, pause, in_place_of_nan=b"null")
    loading = _Loading(_load_model)
    models = tuple(loading.load_all(entries_of(bytes(feed.data), expected, pause), pause))
    if not models:
        raise FetchFailed(f"no model{loading.what_is_wrong()}")
    return models, loading.dropped


def _load_row(entry: Any, _: msgspec.Raw) -> UtilizationRow:
    return UtilizationRow(**_row_schema.load(entry))


def _load_model(entry: Any, text: msgspec.Raw) -> Model:
    """Return the model that an entry describes; a bad value costs no more than itself.

    Raises  ValidationError: it has no usable id
    """
    try:
        declared = _model_schema.load(entry)
    except ValidationError as error:
        declared = error.valid_data
        if not isinstance(declared, dict) or "id" not in declared:
            raise
    features = declared.get("supported_features")
    if features is not None and "structured_output" in features:
        # It is spelled both ways.
        features |= {"structured_outputs"}
    return Model(
        declared["id"], bytes(text),
        context_length=declared.get("context_length") or declared.get("max_model_len") or None,
        max_output_length=declared.get("max_output_length"), features=features,
        inputs=declared.get("input_modalities"),
        confidential=declared.get("confidential_compute"))


class _Loading:
    """Loads the entries of one document, and keeps count of what is wrong with them.

    load  turns an entry, given as its value and its text, into what is kept; raises ValidationError
    """

    def __init__(self, load: Callable[[Any, msgspec.Raw], Any]) -> None:
        self._load = load
        self._wrong: collections.Counter[str] = collections.Counter()
        self.seen = self.dropped = 0

    def load_all(self, entries: list[msgspec.Raw], pause: Callable[[], None]) -> list[Any]:
        """Return what is kept of each valid entry; pauses after each slice."""
        loaded, slice_entries, slice_bytes = [], 0, 0
        self.seen = len(entries)
        for text in entries:
            slice_bytes += len(memoryview(text))
            try:
                entry = decode(text)
                # Private chutes are never eligible, and they are four fifths of the rows.
                if _is_private(entry):
                    continue
                slice_entries += 1
                loaded.append(self._load(entry, text))
            except ValidationError as error:
                self.dropped += 1
                self._wrong.update(_complaints(error, entry))
            except ValueError as error:
                self.dropped += 1
                slice_entries += 1
                self._wrong[str(error)] += 1
            finally:
                if slice_entries >= _ENTRIES_PER_SLICE or slice_bytes >= _BYTES_PER_SLICE:
                    slice_entries, slice_bytes = 0, 0
                    pause()
        return loaded

    def what_is_wrong(self) -> str:
        """Return the most frequent complaints, as the end of a sentence; safe to log."""
        said = [f"{what} in {count} of {self.seen}" for what, count in self._wrong.most_common(5)]
        return ": " * bool(said) + ", ".join(said)


def _is_private(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("name") == PRIVATE_CHUTE


def _complaints(error: ValidationError, entry: Any) -> list[str]:
    """Return what is wrong with an entry by key; the keys are the schema's, never the feed's."""
    if not isinstance(entry, dict):
        return ["not an object"]
    return [f"{key} {'of a wrong type or value' if key in entry else 'missing'}"
            for key in error.messages]

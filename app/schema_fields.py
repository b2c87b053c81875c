"""Fields of marshmallow schemas that more than one room needs."""

from typing import Any

from marshmallow import ValidationError, fields


class Flag(fields.Field[bool]):
    """true or false; `fields.Boolean` would also take "yes" and 1."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("expected true or false")
        return value

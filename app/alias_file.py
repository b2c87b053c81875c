"""The file of aliases: TOML by the standard library, judged by marshmallow.

Source: specs/002 R50.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import marshmallow
from marshmallow import Schema, ValidationError, fields

from app.config_parsers import BadFile
from app.files import read_regular
from app.routing.aliases import BUILT_IN, Alias
from app.schema_fields import Flag

_MAX_BYTES = 1024 * 1024
_SHAPE = "[[alias]] tables and nothing else"
# A name comes back in log lines, and a comma would make it a list.
_is_name = marshmallow.validate.Regexp(
    r"[\x21-\x2b\x2d-\x7e]+\Z", error="expected visible ASCII without a comma")
_is_glob = marshmallow.validate.Regexp(
    r"[\x21-\x2b\x2d-\x7e]+\Z", error="expected a model id, or a glob with * and ?")
_not_empty = marshmallow.validate.Length(min=1, error="expected at least one item")


@dataclasses.dataclass(frozen=True)
class AliasFile:
    """The aliases there are, by name, and where they come from.

    path  of the file; empty: none
    text  the file's
    """

    path: str = ""
    text: str = dataclasses.field(default="", repr=False)
    aliases: Mapping[str, Alias] = dataclasses.field(default_factory=lambda: BUILT_IN)

    def __str__(self) -> str:
        return self.path


class _Tokens(fields.Field[int]):
    """A whole number of at least 1; `fields.Integer` would also take true."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValidationError("expected a whole number of at least 1")
        return value


def _text(check: marshmallow.validate.Validator, **options: Any) -> fields.String:
    messages: Any = {"required": "expected, and missing",
                     **dict.fromkeys(("invalid", "null"), "expected a string")}
    return fields.String(validate=check, error_messages=messages, **options)


def _array(items: fields.Field[Any], **options: Any) -> fields.List[Any]:
    return fields.List(items, error_messages={"invalid": "expected an array"}, **options)


class _AliasSchema(Schema):
    error_messages = {"unknown": "not a key of an alias"}

    name = _text(_is_name, required=True)
    models = _array(_text(_is_glob), validate=_not_empty)
    tiers = _array(_array(_text(_is_glob), validate=_not_empty), validate=_not_empty)
    excluded = _array(_text(_is_glob), data_key="exclude")
    confidential = Flag()
    min_context = _Tokens()

    @marshmallow.validates_schema(skip_on_field_errors=False)
    def exclude_each_other(self, alias: dict[str, Any], **_: Any) -> None:
        """Refuse an alias with `models` and `tiers`."""
        if "models" in alias and "tiers" in alias:
            raise ValidationError("expected no tiers beside models", "tiers")


_schema = _AliasSchema()


def read_aliases(path: str, text: str | None = None) -> AliasFile:
    """Read and check a file of aliases.

    path     of the file; empty: none, and only the built-in aliases exist
    text     the file's, where it has been read before
    Returns  AliasFile, the built-in aliases among its own
    Raises   BadFile with a sentence for each problem
    Cost     reads the file

    Source: specs/002 R50.
    """
    if not path:
        return AliasFile()
    if text is None:
        text = _read(path)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFile([f"{_shown(path)} is not TOML: {error}."]) from None
    entries = document.get("alias", [])
    if document.keys() - {"alias"} or not isinstance(entries, list):
        raise BadFile([f"{_shown(path)}: expected {_SHAPE}."])
    aliases, problems = dict[str, Alias](), list[str]()
    for number, entry in enumerate(entries, 1):
        alias, found = _alias(entry)
        name = entry.get("name") if isinstance(entry, dict) else None
        which = f"alias {name!r}" if isinstance(name, str) and name else f"alias number {number}"
        if alias is not None and alias.name in aliases:
            found = [", key name: expected no name twice"]
        problems += [f"{which}{problem}." for problem in found]
        if alias is not None:
            aliases[alias.name] = alias
    if problems:
        raise BadFile(problems)
    return AliasFile(path, text, {**BUILT_IN, **aliases})


def _read(path: str) -> str:
    try:
        # Some editors begin a file with a byte order mark.
        return read_regular(path, _MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise BadFile([f"{path!r} cannot be read: {error.strerror}."]) from None
    except ValueError:
        raise BadFile([f"{path!r} is not text in UTF-8."]) from None


def _shown(text: str) -> str:
    """Return a key or a path for a sentence, which is one line."""
    return text if text.isprintable() and text else repr(text)


def _alias(entry: Any) -> tuple[Alias | None, list[str]]:
    """Return the alias that a table describes, or what is wrong with it."""
    if not isinstance(entry, dict):
        return None, [": expected a table"]
    try:
        given = _schema.load(entry)
    except ValidationError as error:
        # All of them have a key: the schema makes no complaint of the whole.
        return None, [f", key {_shown(key)}{place}: {what}"
                      for key, messages in error.normalized_messages().items()
                      for place, what in _flat(messages)]
    tiers = given.get("tiers") or [given.get("models", ["*"])]
    return Alias(given["name"], tuple(map(tuple, tiers)), tuple(given.get("excluded", ())),
                 given.get("confidential", False), given.get("min_context", 0)), []


def _flat(messages: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield each place in a value and what is wrong there."""
    if isinstance(messages, dict):
        for index, inner in messages.items():
            yield from _flat(inner, f"{place}[{index}]")
    else:
        for message in messages:
            yield place, message

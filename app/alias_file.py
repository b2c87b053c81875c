"""The file of aliases: TOML by the standard library, judged by marshmallow.

Source: specs/002 R50.
"""

import dataclasses
import pathlib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import marshmallow
from marshmallow import Schema, ValidationError, fields

from app.config_parsers import BadFile
from app.routing.aliases import BUILT_IN, Alias

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


class _Flag(fields.Field[bool]):
    """true or false; `fields.Boolean` would also take "yes" and 1."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("expected true or false")
        return value


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
    error_messages = {"unknown": "not a key of an alias", "type": "expected a table"}

    name = _text(_is_name, required=True)
    models = _array(_text(_is_glob), validate=_not_empty)
    tiers = _array(_array(_text(_is_glob), validate=_not_empty), validate=_not_empty)
    excluded = _array(_text(_is_glob), data_key="exclude")
    confidential = _Flag()
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
        raise BadFile([f"{path} is not TOML: {error}."]) from None
    entries = document.get("alias", [])
    if document.keys() - {"alias"} or not isinstance(entries, list):
        raise BadFile([f"{path}: expected {_SHAPE}."])
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
        return pathlib.Path(path).read_text("utf-8")
    except OSError as error:
        raise BadFile([f"{path!r} cannot be read: {error.strerror}."]) from None
    except ValueError:
        raise BadFile([f"{path!r} is not text in UTF-8."]) from None


def _alias(entry: Any) -> tuple[Alias | None, list[str]]:
    """Return the alias that a table describes, or what is wrong with it."""
    try:
        given = _schema.load(entry)
    except ValidationError as error:
        return None, [f", key {key}: {what}" if key else f": {what}"
                      for key, what in _flat(error.messages)]
    tiers = given.get("tiers") or [given.get("models", ["*"])]
    return Alias(given["name"], tuple(map(tuple, tiers)), tuple(given.get("excluded", ())),
                 given.get("confidential", False), given.get("min_context", 0)), []


def _flat(messages: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each place in a table and what is wrong there."""
    if isinstance(messages, dict):
        for part, inner in messages.items():
            # marshmallow's name for what is wrong with the whole.
            part = "" if part == "_schema" else f"[{part}]" if isinstance(part, int) else part
            yield from _flat(inner, key + part)
    else:
        for message in messages:
            yield key, message

"""Settings of steps: frozen dataclasses that are read from ``key=value`` text and from YAML, and written back.

A setting may hold settings: ``key=[key=value,…]`` as text, a mapping in YAML.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from edgekit.errors import UsageError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Makes a settings object from names and values; text is converted to each field's type.

    Args:
        cls: A dataclass.
        values: Settings by name, as text or as YAML values. ``-`` and ``_`` in names are the same.
        what: Whose settings these are, for messages.

    Raises:
        UsageError: For an unknown name, a missing one, or a value that doesn't fit.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    converted: dict[str, Any] = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=2)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"{what} has no setting {given!r}", f"{hint}Its settings: {', '.join(fields) or 'none'}.")
        converted[name] = _convert(hints[name], value, f"{what}: {name}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in converted:
            raise UsageError(
                f"{what} needs the setting {name!r}", f"For example {name}=…; see `edgekit compress --help`."
            )
    try:
        return cls(**converted)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON or YAML values; :func:`build` takes them back."""
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.init}


def parse_text(text: str) -> dict[str, str]:
    """Reads ``key=value,key=value``; a value with commas is written in brackets, ``key=[a,b]``.

    Raises:
        UsageError: If a part has no ``=``.
    """
    values: dict[str, str] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{part!r} is no setting", "Write settings as key=value, with commas between them.")
        values[key.strip()] = value.strip()
    return values


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _convert(hint: Any, value: Any, what: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if type(None) in options and (value is None or (isinstance(value, str) and value.lower() == "none")):
            return None
        nested = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if nested is not None and (_bracketed(value) or isinstance(value, (Mapping, nested))):  # type: ignore[arg-type]
            return _convert(nested, value, what)
        last: UsageError | None = None
        for option in (o for o in options if o is not type(None)):
            try:
                return _convert(option, value, what)
            except UsageError as error:
                last = error
        raise last or UsageError(f"{what}: {value!r} does not fit")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if _bracketed(value):
            value = parse_text(value.strip()[1:-1])
        if not isinstance(value, Mapping):
            raise UsageError(f"{what}: {value!r} holds no settings", "Write [key=value,key=value].")
        return build(hint, value, what=what)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UsageError(f"{what}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        items = _split(value.strip().strip("[]")) if isinstance(value, str) else list(value)
        return tuple(
            _convert(typing.get_args(hint)[0], item.strip() if isinstance(item, str) else item, what) for item in items
        )
    if hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "on", "1"):
            return True
        if str(value).lower() in ("false", "no", "off", "0"):
            return False
        raise UsageError(f"{what}: {value!r} is neither true nor false")
    if hint in (int, float):
        try:
            number = hint(str(value)) if isinstance(value, str) else hint(value)
        except (TypeError, ValueError):
            raise UsageError(f"{what}: {value!r} is no {'whole ' if hint is int else ''}number") from None
        if hint is int and not isinstance(value, str) and number != value:
            raise UsageError(f"{what}: {value!r} is no whole number")
        return number
    return str(value) if hint is str else value


def _bracketed(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value

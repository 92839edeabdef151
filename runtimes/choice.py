"""Naming a runtime with its settings: ``onnxruntime``, ``onnxruntime:optimization=basic``, ``torch:compile=true``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit import settings as settings_of
from edgekit.errors import UnknownNameError
from edgekit.runtimes.runtime import RUNTIMES, runtime_for
from edgekit.runtimes.settings import choices


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A runtime as it is to be used.

    Attributes:
        name: Of the runtime.
        extra: Its settings that differ from the defaults; :attr:`edgekit.runtimes.runtime.Options.extra` takes them.

    Example:
        >>> str(choose("tflite:xnnpack=false"))
        'tflite:xnnpack=false'
    """

    name: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return named(self.name, self.extra)


def choose(text: str) -> Choice:
    """Reads ``NAME`` or ``NAME:setting=value,…``.

    Raises:
        UnknownNameError: If there is no such runtime.
        UsageError: If it has no such setting, or the value does not fit.
    """
    name, _, values = text.partition(":")
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, RUNTIMES)
    cls = runtime_for(name).settings
    made: Any = settings_of.build(cls, settings_of.parse_text(values), what=f"the runtime {name}")
    standard = settings_of.to_dict(cls())
    return Choice(name=name, extra={k: v for k, v in settings_of.to_dict(made).items() if v != standard[k]})


def named(name: str, extra: Mapping[str, Any]) -> str:
    """A runtime and its settings as :func:`choose` reads them."""
    if not extra:
        return name
    shown = (f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in extra.items())
    return f"{name}:{','.join(shown)}"


def settings(name: str) -> dict[str, Any]:
    """The settings of a runtime with their defaults."""
    cls = runtime_for(name).settings
    return {one.name: one.default for one in dataclasses.fields(cls)}


def describe(name: str) -> dict[str, Any]:
    """What can be told of a runtime here, as JSON values.

    Returns:
        ``usable``, ``version``, ``reason``, ``install``; ``settings`` (the defaults), ``choices`` (the values that each takes)
        and ``unusable``: the settings that can't be used here, as typed, each with ``reason`` and ``install``.
    """
    runtime = runtime_for(name)
    found = runtime.availability()
    lacking = runtime.lacking() if found.usable else {}
    return {
        **dataclasses.asdict(found),
        "settings": settings(name),
        "choices": {key: list(values) for key, values in choices(runtime.settings).items()},
        "unusable": {setting: dataclasses.asdict(one) for setting, one in lacking.items()},
    }

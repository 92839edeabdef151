"""What can be set of a runtime: read, refused when it can't be, and what is missing here for a value.

This module runs on targets: it needs Python alone.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from .runtime import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Lacking:
    """Why a value of a setting can't be used here.

    Attributes:
        reason: What is missing.
        install: What to type or to do about it.
    """

    reason: str
    install: str


class UnusableError(RunError):
    """A setting was asked for that can't be had here; nothing else is run in its place.

    Args:
        setting: As it is typed, ``provider=cuda``.
        lacking: What is missing for it.
    """

    def __init__(self, setting: str, lacking: Lacking) -> None:
        super().__init__(f"{setting}: {lacking.reason}")
        self.install = lacking.install


def read(cls: type[T], extra: Mapping[str, Any], runtime: str) -> T:
    """A runtime's settings from what an :class:`~.runtime.Options` carries.

    Args:
        cls: The runtime's dataclass of settings.
        extra: Values by name.
        runtime: Its name, for messages.

    Raises:
        RunError: For an unknown name, or a value that it does not take.
    """
    taken = choices(cls)
    for name, value in extra.items():
        if name not in taken:
            known = ", ".join(taken) or "none"
            raise RunError(f"the runtime {runtime} has no setting {name!r}; its settings: {known}")
        if taken[name] and value not in taken[name]:
            raise RunError(f"the runtime {runtime}: {name} is {value!r}, not one of {', '.join(map(str, taken[name]))}")
    try:
        return cls(**extra)
    except ValueError as error:
        raise RunError(f"the runtime {runtime}: {error}") from error


def choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """The values that each setting takes; empty where they can't be listed."""
    hints = typing.get_type_hints(cls)
    found: dict[str, tuple[Any, ...]] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        literal = typing.get_origin(hint) is Literal
        found[field.name] = typing.get_args(hint) if literal else (False, True) if hint is bool else ()
    return found

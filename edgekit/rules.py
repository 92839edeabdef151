"""Tables of rules: what must be known of an operator is one small function, which stands in a table under its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Registrar(Protocol):
    """Takes the operators that the decorated function is the rule of."""

    def __call__(self, *operators: Any) -> Callable[[F], F]: ...


def into(table: dict[Any, Any]) -> Registrar:
    """A decorator that puts a function into a table.

    Args:
        table: Rules by operator.

    Example:
        >>> table = {}
        >>> @into(table)("add", "sub")
        ... def same_shape(node): ...
        >>> sorted(table)
        ['add', 'sub']
    """

    def rule(*operators: Any) -> Callable[[F], F]:
        def register(function: F) -> F:
            table.update(dict.fromkeys(operators, function))
            return function

        return register

    return rule

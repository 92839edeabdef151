"""Tables of rules: what must be known of an operator is one small function, which stands in a table under its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def into(table: dict[Any, F]) -> Callable[..., Callable[[F], F]]:
    """A decorator that puts a function into a table.

    Args:
        table: Rules by operator.

    Returns:
        Takes the operators that the function is the rule of.

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

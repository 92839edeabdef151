"""A command that has others below it and does the first one's work when none of them is named."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class DefaultGroup(TyperGroup):
    """``edgekit bench FILES`` is ``edgekit bench run FILES``: what begins with no command's name goes to the first one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the first command's name in front unless one is named."""
        if not args or args[0] not in self.commands:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)

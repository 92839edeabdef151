"""Compression: steps that take a bundle and give a smaller one.

One technique per file; :mod:`edgekit.compress.step` says what a step is and lists them all. The package itself can be
called: ``edgekit.compress(bundle, steps, data)`` is :func:`edgekit.compress.pipeline.compress`.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """``edgekit.compress`` is a folder of steps and also the verb."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from edgekit.compress.pipeline import compress

        return compress(*args, **settings)


sys.modules[__name__].__class__ = _CallablePackage

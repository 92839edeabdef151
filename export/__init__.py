"""Export: from a bundle to a file, and the proof that the file computes what the bundle does.

One format per file; :mod:`edgekit.export.exporter` says what an exporter is and lists them all. The package itself can
be called: ``edgekit.export(bundle, ["onnx"], data="digits")`` is :func:`edgekit.export.run.export`.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """``edgekit.export`` is a folder of exporters and also the verb."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from edgekit.export.run import export

        return export(*args, **settings)


sys.modules[__name__].__class__ = _CallablePackage

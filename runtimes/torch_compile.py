"""torch.compile as a runtime needs it: no fallback in silence, its time told, its integer kernels counted."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .runtime import RunError, first_line
from .settings import Lacking


def no_compiler(device: str) -> Lacking | None:
    """Why torch.compile can't work here; None if it can.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return Lacking("torch.compile needs Triton for the GPU, and it does not work here", "pip install triton")
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        return Lacking(
            f"torch.compile needs a C++ compiler: {first_line(error)}",
            "apt-get install g++, or name one in the variable CXX",
        )
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.isfile(header):
        return Lacking(f"torch.compile needs Python's headers: there is no {header}", "apt-get install python3-dev")
    return None


class Compiled:
    """A program that Inductor compiles as one graph when it meets an input of a new shape.

    Weights are frozen into the graph (Inductor's ``freezing``): batch norms fold into convolutions, weights are laid out as
    kernels like them, and a quantized layer becomes an integer kernel.

    Args:
        module: The program; it must not change afterwards.
        name: Of its file, for messages.
        when: When the first run of a shape is, for the facts.
        integers: Layers that are to be computed in integers: name and number of weights.
    """

    def __init__(
        self, module: GraphModule, name: str, when: str = "the first run", integers: Sequence[tuple[str, int]] = ()
    ) -> None:
        self._run = torch.compile(module, dynamic=False, fullgraph=True)
        self._name, self._when, self._integers = name, when, list(integers)
        self._shapes: set[torch.Size] = set()
        self._integer_kernels: int | None = None
        self._compile_ms = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Runs it; the first time for a shape it compiles.

        Raises:
            RunError: If it can't be compiled as a whole.
        """
        if x.shape in self._shapes:
            return self._run(x)  # type: ignore[no-any-return]
        return self._first(x)

    def _first(self, x: torch.Tensor) -> torch.Tensor:
        from torch._dynamo.utils import calculate_time_spent, counters

        seconds, kernels = calculate_time_spent()["total_wall_time"], _integer_kernels(counters["inductor"])
        try:
            with torch._inductor.config.patch(freezing=True):
                y = self._run(x)
        except Exception as error:
            cause = getattr(error, "inner_exception", None) or error
            raise RunError(f"torch.compile can't compile {self._name}: {_reason(cause)}") from error
        self._compile_ms += 1000 * (calculate_time_spent()["total_wall_time"] - seconds)
        self._integer_kernels = _integer_kernels(counters["inductor"]) - kernels
        self._shapes.add(x.shape)
        return y  # type: ignore[no-any-return]

    def facts(self) -> dict[str, Any]:
        """``compile_ms`` (0 before the first run), where it was spent, and, of integer layers, how many weights each has."""
        told: dict[str, Any] = {
            "compile_ms": self._compile_ms,
            "compiled_in": f"{self._when}; kernels that this machine has compiled before come from Inductor's cache",
        }
        if self._integers and self._integer_kernels == len(self._integers):
            told["integer_weights"] = [weights for _, weights in self._integers]
        return told

    def not_honoured(self) -> list[str]:
        """Integer layers that Inductor found no integer kernel for."""
        missing = len(self._integers) - (self._integer_kernels or 0)
        if self._integer_kernels is None or missing <= 0:
            return []
        return [
            f"{missing} of {len(self._integers)} quantized layers are computed in float: Inductor has no kernel for them"
        ]


def _reason(error: BaseException) -> str:
    """What failed, and the first error that a compiler gave, which stands below its command line."""
    found = next((line.strip() for line in str(error).splitlines()[1:] if "error: " in line), "")
    return f"{type(error).__name__}: {first_line(error)}" + (f": {found}" if found else "")


def _integer_kernels(counted: Any) -> int:
    # One is counted for each convolution or product that is lowered to oneDNN's qconv_pointwise or qlinear_pointwise.
    return sum(
        count
        for name, count in counted.items()
        if name.startswith(("qconv", "qlinear")) and name.endswith("_lower_count")
    )

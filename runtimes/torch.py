"""PyTorch on the CPU: a bundle's program, as a reference for the others."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .runtime import Options, RunError, Runtime, Session, TensorSpec, first_line

if TYPE_CHECKING:
    from .profile import Profile


class TorchRuntime(Runtime):
    """Runs a bundle folder, or a ``.pt2`` that holds no pickle. Runs where edgekit is installed."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"
    install: ClassVar[str] = "pip install torch"

    def runs(self, path: str) -> bool:
        return os.path.isdir(path) or super().runs(path)

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    def open(self, path: str, options: Options) -> Session:
        return TorchSession(path, options)


class TorchSession(Session):
    """A program, run eagerly."""

    def __init__(self, path: str, options: Options) -> None:
        import torch

        from edgekit import program as programs
        from edgekit.errors import EdgekitError

        torch.set_num_threads(options.threads)
        self._torch, self._programs, self._options = torch, programs, options
        file = os.path.join(path, "program.pt2") if os.path.isdir(path) else path
        try:
            self._module = programs.trainable(programs.load_pt2(file))  # type: ignore[arg-type]
        except EdgekitError as error:
            raise RunError(first_line(error)) from error
        self._module.requires_grad_(False)
        self._shape = programs.shape_of(programs.input_node(self._module))
        self._metadata: dict[str, Any] = {}
        description = os.path.join(path, "bundle.json")
        if os.path.isfile(description):
            with open(description, encoding="utf-8") as stream:
                content = json.load(stream)
            self._metadata = {key: content[key] for key in ("preprocessing", "labels", "precision")}
            self._metadata["input_shape"] = content["input"]["shape"][1:]
            self._metadata["few_classes"] = any(step["step"] == "keep-classes" for step in content["steps"])
        self._x: Any = None
        self._y: Any = None

    def metadata(self) -> dict[str, Any]:
        return self._metadata

    def inputs(self) -> list[TensorSpec]:
        return [TensorSpec("input", self._shape, "float32")]

    def outputs(self) -> list[TensorSpec]:
        return [TensorSpec("output", self._programs.shape_of(self._programs.output_node(self._module)), "float32")]

    def prepare(self, x: np.ndarray) -> None:
        if x.shape[1:] != self._shape[1:]:
            raise RunError(f"the program takes inputs of shape {self._shape[1:]}, not {x.shape[1:]}")
        self._x = self._torch.from_numpy(np.ascontiguousarray(x, np.float32))

    def invoke(self) -> None:
        with self._torch.inference_mode():
            self._y = self._module(self._x)

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        taps = {}
        if self._options.taps:
            for name, value in self._programs.node_values(self._module, self._x).items():
                if "*" in self._options.taps or name in self._options.taps:
                    taps[name] = value.float().numpy()
        return self._y.float().numpy(), taps

    def facts(self) -> dict[str, Any]:
        return {
            "library": "torch",
            "version": self._torch.__version__,
            "mode": "eager",
            "threads": self._torch.get_num_threads(),
            "not_honoured": [],
        }

    def profile(self, runs: int) -> Profile:
        from .profile_torch import profile

        return profile(self._module, self._x, runs)

"""PyTorch: a bundle's program, eager or compiled, on a CPU or a CUDA GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from .runtime import Options, RunError, Runtime, Session, TensorSpec, first_line, wants
from .settings import Lacking, UnusableError, read

# Before a CUDA graph is captured, libraries must have chosen their kernels and workspaces (torch's documentation takes 3 runs).
_RUNS_BEFORE_CAPTURE = 3
# TF32 and bfloat16 products begin with Ampere (compute capability 8.0).
_AMPERE = (8, 0)


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """What can be set.

    Attributes:
        device: Where to compute. On CUDA a run ends when the GPU has ended it; the input is copied there before.
        precision: What the program computes in. ``float16`` and ``bfloat16`` cast the whole program, weights, activations and
            input (but batch norm's own numbers, which are used in float32 inside of it in any case): nothing is left to
            autocast's lists, so what is timed is what is named. ``tf32`` rounds the factors of products to 10 bits of fraction
            (CUDA). ``int8`` computes a quantized bundle's layers in integers, which takes the compiler; in float32 they are
            simulated.
        compile: torch.compile (Inductor, one whole graph, weights frozen); the first run of a batch size compiles.
        channels_last: Activations and weights as NHWC in memory.
        cuda_graphs: Record the launches of a run and replay them at once.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "tf32", "float16", "bfloat16", "int8"] = "float32"
    compile: bool = False
    channels_last: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.precision == "tf32":
            raise ValueError("precision=tf32 is a mode of CUDA's products; with device=cpu take float32 or bfloat16")
        if self.device == "cpu" and self.cuda_graphs:
            raise ValueError("cuda_graphs=true needs device=cuda")
        if self.device == "cuda" and self.precision == "int8":
            raise ValueError(
                "torch has no int8 convolutions on CUDA, precision=int8 is for device=cpu; "
                "export the bundle and run it with onnxruntime:provider=tensorrt,precision=int8"
            )


if TYPE_CHECKING:
    from .profile import Profile


class TorchRuntime(Runtime):
    """Runs a bundle folder, or a ``.pt2`` that holds no pickle. Runs where edgekit is installed."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"
    install: ClassVar[str] = "pip install torch"
    settings: ClassVar[type] = TorchSettings

    def runs(self, path: str) -> bool:
        return os.path.isdir(path) or super().runs(path)

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    def lacking(self) -> Mapping[str, Lacking]:
        found = {}
        if (cuda := no_cuda()) is not None:
            found["device=cuda"] = cuda
        if (compiler := _no_compiler("cpu")) is not None:
            found |= {"compile=true": compiler, "precision=int8": compiler}
        return found

    def open(self, path: str, options: Options) -> Session:
        return TorchSession(path, options)


def no_cuda() -> Lacking | None:
    """Why torch can't compute on a GPU here; None if it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return Lacking(
            f"torch {torch.__version__} sees no CUDA device: it is a build without CUDA",
            "pip install --force-reinstall torch, from the index that pytorch.org/get-started names for your CUDA version",
        )
    return Lacking(
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device",
        "run nvidia-smi: a GPU and a driver for this CUDA version must be there, and CUDA_VISIBLE_DEVICES must not hide it",
    )


def _no_compiler(device: str) -> Lacking | None:
    from .torch_compile import no_compiler

    return no_compiler(device)


class TorchSession(Session):
    """A program as the settings say; with taps always eager, for a compiled one has no intermediate tensors."""

    def __init__(self, path: str, options: Options) -> None:
        import torch

        from edgekit import program as programs
        from edgekit.errors import EdgekitError
        from edgekit.pt2 import load_pt2

        from . import torch_program

        chosen = read(TorchSettings, options.extra, "torch")
        compiled = chosen.compile or chosen.precision == "int8"
        if chosen.device == "cuda" and (lacking := no_cuda()) is not None:
            raise UnusableError("device=cuda", lacking)
        if compiled and (lacking := _no_compiler(chosen.device)) is not None:
            raise UnusableError("compile=true" if chosen.compile else "precision=int8", lacking)
        torch.set_num_threads(options.threads)
        self._torch, self._programs, self._options, self._chosen = torch, programs, options, chosen
        file = os.path.join(path, "program.pt2") if os.path.isdir(path) else path
        try:
            module = programs.trainable(load_pt2(file))  # type: ignore[arg-type]
        except EdgekitError as error:
            raise RunError(first_line(error)) from error
        module.requires_grad_(False)
        self._module = torch_program.prepared(module, chosen.precision, compiled and not options.taps)
        self._dtype = torch_program.DTYPES[chosen.precision]
        self._shape = programs.shape_of(programs.input_node(module))
        self._simulated = chosen.precision != "int8" and torch_program.is_quantized(module)
        self._not_honoured: list[str] = []
        self._place()
        self._compiled: Any = None
        if compiled and not options.taps:
            from .torch_compile import Compiled

            integers = torch_program.integer_layers(self._module) if chosen.precision == "int8" else []
            when = "recording, before the first run" if chosen.cuda_graphs else "the first run"
            self._compiled = Compiled(self._module, os.path.basename(path), when, integers)
        self._run = self._compiled or self._module
        self._metadata = _metadata(path)
        self._graph: Any = None
        self._x: Any = None
        self._y: Any = None

    def _place(self) -> None:
        """Moves the program to the device, in the layout and with the products that were asked for."""
        from . import torch_program

        torch, chosen = self._torch, self._chosen
        if chosen.device == "cuda":
            products = "tf32" if chosen.precision == "tf32" else "ieee"
            # torch rounds the factors of float32 convolutions to TF32 unless told otherwise: float32 is to be float32.
            torch.backends.cudnn.fp32_precision = products
            torch.backends.cudnn.conv.fp32_precision = products
            torch.backends.cuda.matmul.fp32_precision = products
            if chosen.precision in ("tf32", "bfloat16") and torch.cuda.get_device_capability() < _AMPERE:
                name = torch.cuda.get_device_name()
                self._not_honoured.append(f"{name} has no {chosen.precision} products: they are computed in float32")
            torch.cuda.reset_peak_memory_stats()
        torch_program.move(self._module, chosen.device)
        if chosen.channels_last and len(self._shape) == 4:
            self._module.to(memory_format=torch.channels_last)
        elif chosen.channels_last:
            self._not_honoured.append(f"channels_last: inputs of shape {self._shape[1:]} have no channels to move")

    def metadata(self) -> dict[str, Any]:
        return self._metadata

    def inputs(self) -> list[TensorSpec]:
        return [TensorSpec("input", self._shape, "float32")]

    def outputs(self) -> list[TensorSpec]:
        return [TensorSpec("output", self._programs.shape_of(self._programs.output_node(self._module)), "float32")]

    def fixed_batch(self) -> int | None:
        # A program is compiled, or recorded, for one batch size: samples are filled up to it, not compiled for again.
        once = self._compiled is not None or self._graph is not None
        return len(self._x) if once and self._x is not None else None

    def prepare(self, x: np.ndarray) -> None:
        if x.shape[1:] != self._shape[1:]:
            raise RunError(f"the program takes inputs of shape {self._shape[1:]}, not {x.shape[1:]}")
        given = self._torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(self._chosen.device, self._dtype)
        if self._chosen.channels_last and given.ndim == 4:
            given = given.to(memory_format=self._torch.channels_last)
        if self._graph is not None and given.shape == self._x.shape:
            self._x.copy_(given)  # a recorded run reads this very memory
            return
        self._x, self._graph = given, None
        if self._chosen.cuda_graphs and not self._options.taps:
            self._record()

    def _record(self) -> None:
        torch = self._torch
        with torch.inference_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_RUNS_BEFORE_CAPTURE):
                    self._run(self._x)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._graph):
                    self._y = self._run(self._x)
            except RuntimeError as error:
                raise RunError(f"the program can't be recorded as a CUDA graph: {first_line(error)}") from error

    def invoke(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            with self._torch.inference_mode():
                self._y = self._run(self._x)
        if self._chosen.device == "cuda":
            self._torch.cuda.synchronize()

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        taps = {}
        if self._options.taps:
            for name, value in self._programs.node_values(self._module, self._x).items():
                if wants(self._options.taps, name):
                    taps[name] = value.float().cpu().numpy()
        return self._y.float().cpu().numpy(), taps

    def facts(self) -> dict[str, Any]:
        return {
            "library": "torch",
            "version": self._torch.__version__,
            "mode": "compiled" if self._compiled is not None else "eager",
            "precision": self._chosen.precision,
            "arithmetic": self._arithmetic(),
            "channels_last": self._chosen.channels_last,
            "threads": self._torch.get_num_threads(),
            **(self._gpu_facts() if self._chosen.device == "cuda" else {"device": "cpu"}),
            **(self._compiled.facts() if self._compiled is not None else {}),
            "not_honoured": [
                *self._not_honoured,
                *(self._compiled.not_honoured() if self._compiled is not None else ()),
            ],
        }

    def _arithmetic(self) -> str:
        precision, products = self._chosen.precision, self._torch.ops.mkldnn
        if self._simulated:
            return "float32, with the rounding of int8 simulated between"
        if precision == "int8":
            return "integers, as the bundle's scales say"
        if self._chosen.device == "cpu" and precision in ("float16", "bfloat16"):
            half = precision == "float16"
            native = products._is_mkldnn_fp16_supported() if half else products._is_mkldnn_bf16_supported()
            return f"{precision}, by " + ("oneDNN's kernels" if native else "kernels that widen each factor to float32")
        return precision

    def _gpu_facts(self) -> dict[str, Any]:
        cuda = self._torch.cuda
        return {
            "device": cuda.get_device_name(),
            "compute_capability": ".".join(map(str, cuda.get_device_capability())),
            "cuda": self._torch.version.cuda,
            "cudnn": self._torch.backends.cudnn.version(),
            "cuda_graphs": self._graph is not None,
            "device_memory_bytes": cuda.max_memory_allocated(),
            "timed": "on the device, until it has ended; without the copies of input and output",
        }

    def profile(self, runs: int) -> Profile:
        from .profile_torch import profile

        if self._compiled is not None or self._chosen.device != "cpu":
            raise RunError(
                "torch's layers are timed one by one in eager mode on the CPU alone: leave compile and device out"
            )
        return profile(self._module, self._x, runs)

    def close(self) -> None:
        self._graph = self._x = self._y = None


def _metadata(path: str) -> dict[str, Any]:
    description = os.path.join(path, "bundle.json")
    if not os.path.isfile(description):
        return {}
    with open(description, encoding="utf-8") as stream:
        content = json.load(stream)
    return {
        **{key: content[key] for key in ("preprocessing", "labels", "precision")},
        "input_shape": content["input"]["shape"][1:],
        "few_classes": any(step["step"] == "keep-classes" for step in content["steps"]),
    }

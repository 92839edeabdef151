"""ncnn on the CPU or, through Vulkan, on a GPU, with every option that changes results set explicitly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .runtime import Options, RunError, Runtime, Session, TensorSpec, wants
from .settings import Lacking, UnusableError, read

if TYPE_CHECKING:
    from .profile import Profile

_MAGIC = "7767517"


@dataclass(frozen=True, kw_only=True)
class NcnnSettings:
    """What can be set: ncnn's own options of these names.

    Its defaults compute and store in half precision where the CPU can, which changes results by 4e-4: off unless asked.

    Attributes:
        use_fp16_packed: Half precision inside of a layer.
        use_fp16_storage: Half precision between layers.
        use_fp16_arithmetic: Half precision in sums.
        use_bf16_storage: bfloat16 between layers.
        use_packing_layout: Channels in groups of 4, 8 or 16.
        use_winograd_convolution: 3×3 convolutions by Winograd's algorithm: fewer products, sums in another order.
        use_sgemm_convolution: Convolutions as matrix products.
        use_vulkan_compute: On a GPU with a Vulkan driver; without one an error, not a run on the CPU.
    """

    use_fp16_packed: bool = False
    use_fp16_storage: bool = False
    use_fp16_arithmetic: bool = False
    use_bf16_storage: bool = False
    use_packing_layout: bool = True
    use_winograd_convolution: bool = True
    use_sgemm_convolution: bool = True
    use_vulkan_compute: bool = False


class NcnnRuntime(Runtime):
    """Runs ``NAME.param`` with ``NAME.bin`` (and ``NAME.json``) beside it."""

    name: ClassVar[str] = "ncnn"
    suffix: ClassVar[str] = ".param"
    install: ClassVar[str] = "pip install ncnn"
    settings: ClassVar[type] = NcnnSettings

    def version(self) -> str:
        import ncnn

        return str(ncnn.__version__)

    def lacking(self) -> Mapping[str, Lacking]:
        vulkan = _no_vulkan()
        return {} if vulkan is None else {"use_vulkan_compute=true": vulkan}

    def open(self, path: str, options: Options) -> Session:
        return NcnnSession(path, options)


def _no_vulkan() -> Lacking | None:
    """Why ncnn can't compute on a GPU here; None if it can."""
    import ncnn

    if not hasattr(ncnn, "get_gpu_count"):
        return Lacking(f"ncnn {ncnn.__version__} is built without Vulkan", "pip install ncnn")
    with _quiet_stderr():
        found = ncnn.get_gpu_count()
    if found > 0:
        return None
    return Lacking(
        "ncnn sees no GPU with a Vulkan driver",
        "apt-get install libvulkan1 and the GPU's own driver (mesa-vulkan-drivers, nvidia-driver); vulkaninfo must list it",
    )


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """ncnn writes a line for each place where it looks for a driver, past Python's own stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class NcnnSession(Session):
    """A pair of ncnn model files."""

    def __init__(self, path: str, options: Options) -> None:
        import ncnn

        self._ncnn = ncnn
        self._options = options
        self._set = asdict(read(NcnnSettings, options.extra, "ncnn"))
        if self._set["use_vulkan_compute"] and (lacking := _no_vulkan()) is not None:
            raise UnusableError("use_vulkan_compute=true", lacking)
        stem = path.removesuffix(".param")
        text = _read_param(path)
        if not os.path.isfile(stem + ".bin"):
            raise RunError(f"{stem}.bin is missing beside {path}")
        _check_size(text, stem + ".bin")
        self._net = ncnn.Net()
        # Without it ncnn runs int8 weights as if they were floats: the output is not a number.
        self._net.opt.use_int8_inference = True
        for name, value in self._set.items():
            setattr(self._net.opt, name, value)
        self._net.opt.num_threads = options.threads
        self._net.opt.lightmode = not options.taps
        if self._net.load_param(path) != 0:
            raise RunError(f"ncnn can't load {path}: a layer type it does not have, or a damaged file")
        if self._net.load_model(stem + ".bin") != 0:
            raise RunError(f"ncnn can't load {stem}.bin: it is damaged or belongs to another .param")
        layers = [line.split() for line in text[2:] if line.strip()]
        self._blobs = [
            blob for parts in layers for blob in parts[4 + int(parts[2]) : 4 + int(parts[2]) + int(parts[3])]
        ]
        self._input = next(parts[4] for parts in layers if parts[0] == "Input")
        consumed = {blob for parts in layers for blob in parts[4 : 4 + int(parts[2])]}
        self._output = next(blob for blob in reversed(self._blobs) if blob not in consumed)
        # int8_scale_term (parameter 8) above 100: the layer hands on int8.
        self._integers = {parts[5] for parts in layers if any(re.fullmatch(r"8=10\d", part) for part in parts)}
        for parts in layers:
            if parts[0] == "Split" and parts[4] in self._integers:
                self._integers.update(parts[5 : 5 + int(parts[3])])
        self._integer_weights = [
            _weights(parts) for parts in layers if _params(parts).get("8", "0") != "0" and _weights(parts)
        ]
        self._metadata: dict[str, Any] = {}
        if os.path.isfile(stem + ".json"):
            with open(stem + ".json", encoding="utf-8") as stream:
                self._metadata = json.load(stream)
        self._array = np.zeros(0, np.float32)
        self._extractor: Any = None
        self._result: Any = None

    def metadata(self) -> dict[str, Any]:
        return self._metadata

    def inputs(self) -> list[TensorSpec]:
        shape = tuple(self._metadata.get("input_shape", ()))
        return [TensorSpec(self._input, (1, *shape), "float32")]

    def outputs(self) -> list[TensorSpec]:
        return [TensorSpec(self._output, (1,), "float32")]

    def fixed_batch(self) -> int | None:
        return 1

    def prepare(self, x: np.ndarray) -> None:
        expected = tuple(self._metadata.get("input_shape", x.shape[1:]))
        if x.shape[1:] != expected:
            raise RunError(f"the file takes inputs of shape {expected}, not {x.shape[1:]}")
        # ncnn.Mat keeps a pointer and no reference: the array must outlive every extract.
        self._array = np.ascontiguousarray(x[0], np.float32)
        self._mat = self._ncnn.Mat(self._array)

    def invoke(self) -> None:
        self._extractor = self._net.create_extractor()
        self._extractor.input(self._input, self._mat)
        code, self._result = self._extractor.extract(self._output)
        if code != 0:
            raise RunError(f"ncnn failed with code {code}, most often for want of memory or an input of another shape")

    def results(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        taps = {}
        for blob in self._blobs if self._options.taps else ():
            if wants(self._options.taps, blob) and blob not in (self._input, self._output):
                code, value = self._extractor.extract(blob)
                if code == 0:
                    # extract() casts int8 to float; the scale is inside the layers, so integers are what can be told.
                    taps[blob] = np.array(value, np.int8 if blob in self._integers else np.float32)[None]
        return np.array(self._result, np.float32)[None], taps

    def facts(self) -> dict[str, Any]:
        return {
            "library": "ncnn",
            "version": self._ncnn.__version__,
            "options": {**self._set, "use_int8_inference": True},
            "device": self._gpu() or "cpu",
            "integer_weights": self._integer_weights,
            "threads": self._net.opt.num_threads,
            "arithmetic": "float32" if not self._set["use_fp16_arithmetic"] else "float16 where the processor has it",
            "not_honoured": self._not_honoured(),
        }

    def _gpu(self) -> str:
        return str(self._ncnn.get_gpu_info(0).device_name()) if self._set["use_vulkan_compute"] else ""

    def _not_honoured(self) -> list[str]:
        if self._set["use_vulkan_compute"] or self._ncnn.cpu_support_arm_asimdhp():
            return []
        # On x86 half precision is a form of storage: what is stored so is widened before it is computed with.
        names = [name for name in ("use_fp16_packed", "use_fp16_arithmetic") if self._set[name]]
        return [f"{name}: ncnn has no kernels in half precision for this CPU" for name in names]

    def close(self) -> None:
        self._extractor = self._result = None
        self._net.clear()

    def profile(self, runs: int) -> Profile:
        from .profile_ncnn import profile

        return profile(self._ncnn, self._net, self._input, self._mat, self.invoke, runs)


def _read_param(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().split("\n")
        layers, blobs = (int(part) for part in lines[1].split())
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise RunError(f"{path} is no ncnn .param file: {error}") from error
    if lines[0].strip() != _MAGIC:
        raise RunError(f"{path} is no ncnn .param file: it does not begin with {_MAGIC}")
    found = len([line for line in lines[2:] if line.strip()])
    if found != layers or blobs < 1:
        raise RunError(f"{path} is damaged: it announces {layers} layers and holds {found}")
    return lines


def _params(parts: list[str]) -> dict[str, str]:
    """The settings of a layer, by number."""
    return dict(item.split("=", 1) for item in parts[4 + int(parts[2]) + int(parts[3]) :])


def _weights(parts: list[str]) -> int:
    """How many weights a convolution or linear layer has; 0 for any other."""
    convolution = parts[0].startswith(("Convolution", "Deconvolution"))
    key = "2" if parts[0] == "InnerProduct" else "6" if convolution else ""
    return int(_params(parts).get(key, 0)) if key else 0


def _check_size(lines: list[str], path: str) -> None:
    """ncnn reads past the end of a truncated .bin without an error: refuse one that is plainly too short."""
    needed = 0
    for line in lines[2:]:
        parts = line.split()
        if not parts:
            continue
        needed += _weights(parts)  # at least one byte a weight
    if os.path.getsize(path) < needed:
        raise RunError(f"{path} is truncated: {os.path.getsize(path)} bytes, and its layers need {needed} at least")

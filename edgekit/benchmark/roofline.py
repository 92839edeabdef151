"""The roofline of a machine, measured on it: the least time that an operator of so many MACs and bytes can take.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
Communications of the ACM 52(4), 2009: attainable = min(peak, operational intensity × bandwidth). Both are measured here
where the files run: the bandwidth by copying arrays that no cache holds, counted as STREAM does (McCalpin, "Memory
bandwidth and machine balance in current high performance computers", IEEE TCCA Newsletter, 1995); the peaks by large
matrix products.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RuntimeUnavailableError, UsageError
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.target import Target

if TYPE_CHECKING:
    import onnx

# The larger fills the caches best, the smaller has the better chance of a moment without other programs.
SIZES = (512, 1024)
_RUNS, _SECONDS = 10, 0.3
# What ONNX Runtime 1.31 reads, as the exporter of ONNX.
_IR_VERSION, _OPSET = 10, 20


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What a machine can do at most, with so many threads.

    Attributes:
        threads: That it was measured with.
        bytes_per_second: Of a copy, read and written.
        float32_macs_per_second: Of the fastest matrix product.
        int8_macs_per_second: Likewise in integers; None where it could not be measured.
        array_bytes: What was copied.
        cache_bytes: The machine's largest cache; 0 where it does not tell.
        source: What the peaks were measured with.
    """

    threads: int
    bytes_per_second: float
    float32_macs_per_second: float
    int8_macs_per_second: float | None
    array_bytes: int = 0
    cache_bytes: int = 0
    source: str = ""

    def attainable_ms(self, macs: int, size_bytes: float, *, integer: bool = False) -> float | None:
        """The least time of an operator.

        Args:
            macs: Its multiply-accumulates.
            size_bytes: What it reads and writes.
            integer: It computes in int8.

        Returns:
            Milliseconds; None where the peak is not known.

        Example:
            >>> line = Roofline(threads=1, bytes_per_second=10e9, float32_macs_per_second=50e9, int8_macs_per_second=None)
            >>> line.attainable_ms(50_000_000, 1_000_000)  # 50 MACs a byte: the arithmetic decides
            1.0
        """
        peak = self.int8_macs_per_second if integer else self.float32_macs_per_second
        if peak is None:
            return None
        return 1000 * max(macs / peak, size_bytes / self.bytes_per_second)

    def ridge(self, *, integer: bool = False) -> float | None:
        """MACs a byte from which on the arithmetic decides, and no more the memory."""
        peak = self.int8_macs_per_second if integer else self.float32_macs_per_second
        return None if peak is None else peak / self.bytes_per_second

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def refuse_emulated(target: Target) -> None:
    """Refuses a target whose times are no latencies.

    Raises:
        UsageError: With the reason.
    """
    if not target.times_are_real:
        raise UsageError(
            f"{target.name} emulates its processor: what it times is no latency, so there is no time of a layer and no "
            "roofline there",
            "Use --target local, ssh:HOST or adb; `edgekit bench --target emulated:…` counts instructions.",
        )


def best_of(first: Roofline, second: Roofline) -> Roofline:
    """The higher of two measurements of one machine in each of its figures: noise makes them lower only."""
    int8 = [line.int8_macs_per_second for line in (first, second) if line.int8_macs_per_second is not None]
    return replace(
        first,
        bytes_per_second=max(first.bytes_per_second, second.bytes_per_second),
        float32_macs_per_second=max(first.float32_macs_per_second, second.float32_macs_per_second),
        int8_macs_per_second=max(int8) if int8 else None,
    )


def measure_roofline(target: Target, threads: int = 1) -> Roofline:
    """Measures a machine.

    Args:
        target: The machine.
        threads: To measure with.

    Raises:
        UsageError: If the target is emulated.
        ExecutionError: If it can't be measured.
    """
    refuse_emulated(target)
    with target.worker() as worker:
        memory = worker.bandwidth(threads)
    float32, int8, source = _peaks(target, threads)
    return Roofline(
        threads=threads,
        bytes_per_second=memory["bytes_per_second"],
        float32_macs_per_second=float32,
        int8_macs_per_second=int8,
        array_bytes=memory["array_bytes"],
        cache_bytes=memory["cache_bytes"],
        source=source,
    )


def _peaks(target: Target, threads: int) -> tuple[float, float | None, str]:
    rng = np.random.default_rng(0)
    float32, int8 = [], []
    try:
        for size in SIZES:
            x = rng.standard_normal((size, size), dtype=np.float32)
            float32.append(_time(target, threads, float_product(rng, size), x))
            integers = rng.integers(0, 256, (size, size)).astype(np.float32)
            int8.append(_time(target, threads, integer_product(rng, size), integers))
        return max(float32), max(int8), "matrix products in ONNX Runtime"
    except RuntimeUnavailableError:
        with target.worker() as worker:
            found = [worker.matrix_product(size, threads)["macs_per_second"] for size in SIZES]
        return max(found), None, "a matrix product in NumPy, for ONNX Runtime is not there"


def _time(target: Target, threads: int, model: onnx.ModelProto, x: np.ndarray) -> float:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder, target.worker() as worker:
        path = Path(folder, "product.onnx")
        path.write_bytes(model.SerializeToString())
        worker.open(path, "onnxruntime", Options(threads=threads))
        timed = worker.time(x, runs=_RUNS, seconds=_SECONDS, warmup_runs=2, warmup_seconds=0.0)
    return float(len(x) ** 3 / min(timed["samples_ms"]) * 1000)


def float_product(rng: np.random.Generator, size: int) -> onnx.ModelProto:
    """An ONNX model that multiplies its square input with a float32 matrix."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(rng.standard_normal((size, size), dtype=np.float32), "b")
    return _model(helper.make_node("MatMul", ["a", "b"], ["y"]), [weight], TensorProto.FLOAT, size)


def integer_product(rng: np.random.Generator, size: int) -> onnx.ModelProto:
    """An ONNX model that multiplies its square uint8 input with an int8 matrix and rescales to uint8, as int8 files do."""
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, np.ndarray] = {
        "scale": np.array(0.01, np.float32), "a_zero": np.array(128, np.uint8), "b_zero": np.array(0, np.int8),
        "b": rng.integers(-127, 128, (size, size)).astype(np.int8),
    }  # fmt: skip
    inputs = ["a", "scale", "a_zero", "b", "scale", "b_zero", "scale", "a_zero"]
    made = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return _model(helper.make_node("QLinearMatMul", inputs, ["y"]), made, TensorProto.UINT8, size)


def _model(node: Any, constants: list[Any], kind: int, size: int) -> onnx.ModelProto:
    from onnx import helper

    ends = [helper.make_tensor_value_info(name, kind, [size, size]) for name in ("a", "y")]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)

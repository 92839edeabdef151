"""Whether int8 will help on a machine, told before any work: from the CPU's instructions, the runtime and the network.

A forecast, not a measurement: it says what the runtime's int8 kernels have to compute with. ``edgekit bench`` measures.
Sources: ONNX Runtime's documentation of quantization ("Performance"), XNNPACK's and ncnn's kernel sources; on one x86 CPU with
AVX-512 VNNI the verdicts were held against measurements (benches/int8_speed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.fx import GraphModule

Verdict = Literal["faster", "little", "slower", "unknown"]

# Above this share of the MACs in depthwise layers, their kernels decide.
_MUCH_DEPTHWISE = 0.03
# ncnn converts what stands between convolutions: ResNet-20 (0.04 GMACs) takes 0.97 of its float time, SqueezeNet (0.4) 0.75,
# ResNet-50 (4) 0.59. Where between the last two it begins to pay was not measured.
_MANY_MACS = 1_000_000_000


@dataclass(frozen=True)
class Forecast:
    """What int8 is expected to do to the time.

    Attributes:
        runtime: Its name.
        verdict: ``faster``, ``little`` (no gain worth it), ``slower``, or ``unknown``.
        reason: Why.
    """

    runtime: str
    verdict: Verdict
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def forecast(machine: str, flags: Collection[str], depthwise_share: float, macs: int = 0) -> list[Forecast]:
    """One verdict for each runtime that files run in unless another is named (``runtime.SUFFIXES``).

    Args:
        machine: As ``platform.machine()`` names it.
        flags: Of the CPU, as in /proc/cpuinfo.
        depthwise_share: Share of the network's MACs in depthwise layers, 0 to 1.
        macs: All of its MACs, for one input.

    Example:
        >>> [(f.runtime, f.verdict) for f in forecast("x86_64", {"avx2"}, 0.0)][:2]
        [('onnxruntime', 'little'), ('tflite', 'faster')]
    """
    if machine in ("x86_64", "AMD64"):
        rules: tuple[Callable[[set[str], float, int], Forecast], ...] = (_x86_onnxruntime, _x86_tflite, _x86_ncnn)
    elif machine in ("aarch64", "arm64"):
        rules = (_arm_onnxruntime, _arm_tflite, _arm_ncnn)
    else:
        return [
            Forecast(name, "unknown", f"nothing is known of {machine}") for name in ("onnxruntime", "tflite", "ncnn")
        ]
    return [rule(set(flags), depthwise_share, macs) for rule in rules] + [_torch()]


def forecast_of(module: GraphModule, target: str) -> dict[str, Any]:
    """The forecasts for a network on a target.

    Args:
        module: The network's graph.
        target: Such as ``local``.

    Returns:
        The CPU, its flags, the share of the MACs in depthwise layers, and the forecasts.
    """
    from edgekit.cost import cost_of
    from edgekit.program import aten, shape_of
    from edgekit.runtimes.targets.target import target_for

    cost = cost_of(module)
    nodes = {node.name: node for node in module.graph.nodes}
    depthwise = sum(
        layer.macs
        for layer in cost.layers
        if nodes[layer.name].target is aten.conv2d.default
        and len(nodes[layer.name].args) > 6
        and nodes[layer.name].args[6] == shape_of(nodes[layer.name])[1]
    )
    share = depthwise / max(cost.macs, 1)
    with target_for(target) as opened:
        facts = opened.describe()
    return {
        "cpu": facts["cpu"],
        "cpu_flags": facts["cpu_flags"],
        "depthwise_macs_share": share,
        "forecasts": forecast(facts["machine"], facts["cpu_flags"], share, cost.macs),
    }


def _torch() -> Forecast:
    return Forecast("torch", "slower", "int8 is simulated there, unless it is compiled (precision=int8)")


def _x86_onnxruntime(flags: set[str], depthwise: float, macs: int) -> Forecast:
    if flags & {"avx512_vnni", "avx_vnni"}:
        return Forecast(
            "onnxruntime",
            "faster",
            "VNNI multiplies four int8 pairs at once",
        )
    if "avx2" in flags:
        return Forecast(
            "onnxruntime",
            "little",
            "without VNNI a product takes three instructions",
        )
    return Forecast("onnxruntime", "slower", "there is neither VNNI nor AVX2")


def _x86_tflite(flags: set[str], depthwise: float, macs: int) -> Forecast:
    if flags & {"avx512_vnni", "avx_vnni", "avx512bw", "avx2"}:
        return Forecast("tflite", "faster", "XNNPACK has int8 kernels for these instructions")
    return Forecast("tflite", "slower", "XNNPACK's int8 kernels need AVX2 to gain on float")


def _x86_ncnn(flags: set[str], depthwise: float, macs: int) -> Forecast:
    if not flags & {"avx512_vnni", "avx_vnni"}:
        return Forecast("ncnn", "unknown", "not measured without VNNI")
    if depthwise > _MUCH_DEPTHWISE:
        return Forecast("ncnn", "little", f"{100 * depthwise:.0f} % of the MACs are depthwise and stay in float")
    if macs >= _MANY_MACS:
        return Forecast("ncnn", "faster", "the convolutions outweigh what is converted to float between them")
    return Forecast("ncnn", "little", "all but convolutions computes in float, converted each time")


def _arm_onnxruntime(flags: set[str], depthwise: float, macs: int) -> Forecast:
    return _arm("onnxruntime", flags)


def _arm_tflite(flags: set[str], depthwise: float, macs: int) -> Forecast:
    return _arm("tflite", flags)


def _arm_ncnn(flags: set[str], depthwise: float, macs: int) -> Forecast:
    if "asimdhp" in flags and "asimddp" not in flags:
        return Forecast("ncnn", "little", "float networks run in float16 there, as fast as int8")
    return _arm("ncnn", flags)


def _arm(runtime: str, flags: set[str]) -> Forecast:
    if "i8mm" in flags:
        return Forecast(runtime, "faster", "i8mm multiplies int8 matrices")
    if "asimddp" in flags:
        return Forecast(runtime, "faster", "SDOT multiplies four int8 pairs at once")
    return Forecast(
        runtime, "little", "without dot products (asimddp) int8 multiplies are widened: about the speed of float"
    )

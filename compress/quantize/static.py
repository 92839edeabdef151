"""Static quantization after training: integer weights and activations, no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekit.bundle import Bundle
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError


@dataclass(frozen=True, kw_only=True)
class Quantize(Step):
    """Symmetric integer weights, int8 activations with a zero point, ranges from training images.

    Attributes:
        weight_bits: Of every weight, 2 to 8; below 8 the scale of least squared error is taken.
        layer_bits: Of some layers, by name pattern, for example ``[conv1=8,layer3*=4]``.
        size: Choose the bits of each layer so that the weights take this share of their float32 bytes, for example 0.15;
            ``weight_bits`` is not looked at then.
        bit_operations: The same for the MACs times the bits of their weights: the share of the int8 network's, for example 0.5,
            for hardware whose time follows the bits. CPUs' does not.
        granularity: One weight scale for each output channel, or one for the whole layer.
        activation_bits: 8; 16, symmetric, which TFLite alone has kernels for, slower than those for 8; or 32, float: weights
            alone are quantized, the file is smaller and no faster.
        symmetric: Activations without a zero point.
        calibration: How the range of an activation is found from what was seen.
        rounding: Weights to the nearest integer, or up or down as keeps the layer's output (AdaRound).
        iterations: Steps in which AdaRound learns the rounding of each layer.
        bias_correction: Give back through the biases what rounding shifts in each layer's mean output.
        images: How many training images to calibrate on.
        batch_size: How many of them at a time at most; fewer where activations are large. Memory depends on this alone.
        keep_float: Name patterns of layers that stay in float, for example ``[conv1,fc*]``.
        max_drop: Points of top-1 that may be lost on the validation split: the most sensitive layers go back to 8 bits,
            then to float, until the drop is within it.
        control_images: How many validation images judge that.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "static integer weights and activations, calibrated on training images"
    source: ClassVar[str] = "Jacob et al., CVPR 2018; TFLite 8-bit quantization specification; AdaRound: ICML 2020"
    example: ClassVar[str] = "images=64"

    weight_bits: int = 8
    layer_bits: tuple[str, ...] = ()
    size: float | None = None
    bit_operations: float | None = None
    granularity: Literal["per-channel", "per-tensor"] = "per-channel"
    activation_bits: int = 8
    symmetric: bool = False
    calibration: Literal["min-max", "moving-average", "percentile", "mse", "entropy"] = "min-max"
    rounding: Literal["nearest", "adaround"] = "nearest"
    iterations: int = 1000
    bias_correction: bool = True
    images: int = 512
    batch_size: int = 32
    keep_float: tuple[str, ...] = ()
    max_drop: float | None = None
    control_images: int = 5000

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "iterations", "control_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 2 <= self.weight_bits <= 8:
            raise ValueError(f"weight_bits must be 2 to 8, not {self.weight_bits}")
        if self.activation_bits not in (8, 16, 32):
            raise ValueError(f"activation_bits must be 8, 16 or 32, not {self.activation_bits}")
        if self.size is not None and not 0 < self.size <= 0.25:
            raise ValueError(f"size is a share of the float32 bytes between 0 and 0.25, not {self.size}")
        if self.bit_operations is not None and not 0 < self.bit_operations <= 1:
            raise ValueError(
                f"bit_operations is a share of the int8 network's between 0 and 1, not {self.bit_operations}"
            )
        if self.size is not None and self.bit_operations is not None:
            raise ValueError("give one budget: size or bit_operations")
        for text in self.layer_bits:
            pattern, _, number = text.partition("=")
            if not pattern or number not in tuple("2345678"):
                raise ValueError(f"layer_bits takes PATTERN=BITS with 2 to 8 bits, not {text!r}")

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle, sparse=True)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        from edgekit.compress.quantize.control import controlled
        from edgekit.compress.quantize.session import Session

        session = Session(bundle, self, context)
        choice = session.first_choice()
        if self.max_drop is None:
            module, report = session.quantized(choice)
        else:
            module, report = controlled(session, choice, self.max_drop, self.control_images)
        report = {
            "batch_norms_folded": session.folded,
            "calibration": self.calibration,
            "calibration_images": min(self.images, len(session.dataset.train)),
            **report,
        }
        return bundle.with_module(module, shapes_kept=True), report

    def ensures(self, before: Bundle, after: Bundle) -> None:
        if after.precision != "int8":
            raise StepError("the result holds no integer weight", "Keep fewer layers in float.")

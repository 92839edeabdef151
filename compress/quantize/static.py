"""Static INT8 quantization after training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from edgekit.bundle import Bundle
from edgekit.compress.quantize.bias import correct_biases, output_means
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.compress.step import Context, Step
from edgekit.cost import cost_of
from edgekit.data.dataset import to_inputs
from edgekit.errors import StepError
from edgekit.program import layer_name

# Means of so many images stand for all: their activations are held at once, a layer at a time.
BIAS_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class Quantize(Step):
    """INT8: symmetric weights per output channel, asymmetric activations per tensor, ranges from training images.

    Attributes:
        calibration: How the range of an activation is found from what was seen.
        bias_correction: Give back through the biases what rounding shifts in each layer's mean output.
        images: How many training images to calibrate on.
        batch_size: How many of them at a time; memory depends on this alone.
        keep_float: Name patterns of layers that stay in float, for example ``[conv1,fc*]``.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "static INT8 weights and activations, calibrated on training images"
    source: ClassVar[str] = "Jacob et al., CVPR 2018; TFLite 8-bit quantization specification"
    example: ClassVar[str] = "images=64"

    calibration: Literal["min-max", "moving-average", "percentile", "mse", "entropy"] = "min-max"
    bias_correction: bool = True
    images: int = 512
    batch_size: int = 32
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch_size < 1:
            raise ValueError(f"images and batch_size must be at least 1, not {self.images} and {self.batch_size}")

    def requires(self, bundle: Bundle) -> None:
        if bundle.precision != "float32":
            raise StepError("the bundle is quantized already", "Start from the bundle before its quantize step.")

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        dataset = context.dataset(self.name)
        module = bundle.module()
        remove_dropout(module)
        folded = fold_batch_norm(module)
        plan = make_plan(module, self.keep_float)
        if not plan.compute:
            raise StepError("there is no convolution or linear layer to quantize")
        macs = {layer.name: layer.macs for layer in cost_of(module).layers}

        def batches(quiet: bool = False) -> Iterator[np.ndarray]:
            # Drawn at random: many sets are stored class after class.
            chosen = np.random.default_rng(context.seed).permutation(len(dataset.train))[: self.images]
            for start in range(0, len(chosen), self.batch_size):
                part = np.sort(chosen[start : start + self.batch_size])
                yield to_inputs(dataset.train.images(part), bundle.preprocessing)
                if not quiet:
                    context.progress(start + len(part), len(chosen), "calibrating")

        ranges = observe_ranges(module, plan, batches(), self.calibration)
        report: dict[str, Any] = {
            "batch_norms_folded": folded,
            "calibration": self.calibration,
            "calibration_images": min(self.images, len(dataset.train)),
            "quantized_layers": [layer_name(node) for node in plan.compute],
            "int8_macs_share": sum(macs.get(n.name, 0) for n in plan.compute) / max(sum(macs.values()), 1),
            "in_float": [
                {"layer": layer_name(n), "operator": str(n.target), "reason": why} for n, why in plan.in_float
            ],
        }
        # The means are those of the images that correct: other images would put their own difference into the biases.
        few = list(itertools.islice(batches(quiet=True), math.ceil(BIAS_IMAGES / self.batch_size)))
        means = output_means(module, plan.compute, few) if self.bias_correction else {}
        insert(module, plan, parameters_of(plan, ranges))
        shifts = correct_biases(module, means, np.concatenate(few))
        report["bias_corrected"] = {layer_name(node): shift for node, shift in shifts.items()}
        return bundle.with_module(module), report

    def ensures(self, before: Bundle, after: Bundle) -> None:
        if after.precision != "int8":
            raise StepError("the result holds no int8 weight")

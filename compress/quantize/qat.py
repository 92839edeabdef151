"""Quantization-aware training with learned steps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.distill.teacher import refuse_unfit_teachers
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError

# What the steps of activations begin with is taken of so many images.
_FEW = 64


@dataclass(frozen=True, kw_only=True)
class QuantizationAwareTraining(Step):
    """Trains weights, and the steps of their and the activations' grids, as they will be deployed.

    The first and the last layer keep ``edge_bits``; residual sums and what only they read keep 8.

    Attributes:
        weight_bits: Of every weight but the first and last layer's, 1 to 8; with 1 it is a sign and a scale for each output
            channel (SYQ), with 2 one of four levels without a zero (SAWB).
        activation_bits: Of what these layers read, 2 to 8. Below 8 it is a clamp and an int8 grid of few levels: CPUs gain
            no speed from it, and of the formats only ONNX computes it as it was trained.
        edge_bits: Of the first and the last layer, weights and activations.
        epochs: Passes over the training split.
        batch_size: Images for each step of the optimizer.
        learning_rate: Peak of the schedule.
        schedule: How the learning rate moves.
        weight_decay: L2 penalty.
        distill: Share of the float network's soft targets in the loss, 0 to 1, the rest being cross-entropy; or the settings
            of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
        augmentation: ``auto`` is what the data set asks for.
        precision: Arithmetic of the training; weights, steps and what is deployed stay float32.
        keep: Hand back the epoch that is best on the validation split, or the last.
        images: Training images to calibrate the first int8 ranges on.
        keep_float: Name patterns of layers that stay in float.
    """

    name: ClassVar[str] = "qat"
    summary: ClassVar[str] = "train on with quantized weights and activations, their steps learned (LSQ)"
    source: ClassVar[str] = (
        "Esser et al., 'Learned Step Size Quantization', ICLR 2020; 1 bit: SYQ, CVPR 2018; 2 bits: SAWB, MLSys 2019"
    )
    example: ClassVar[str] = "weight_bits=3,activation_bits=4,epochs=1,images=64"

    weight_bits: int = 4
    activation_bits: int = 8
    edge_bits: int = 8
    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.01
    schedule: Literal["one-cycle", "cosine", "constant"] = "cosine"
    weight_decay: float = 1e-4
    distill: Distillation | float = 0.0
    augmentation: Literal["auto", "none", "crop", "crop+flip"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    keep: Literal["best", "last"] = "best"
    images: int = 256
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("weight_bits", 1), ("activation_bits", 2), ("edge_bits", 2)):
            if not least <= getattr(self, name) <= 8:
                raise ValueError(f"{name} must be {least} to 8, not {getattr(self, name)}")
        if self.epochs < 1 or self.images < 1:
            raise ValueError(f"epochs and images must be at least 1, not {self.epochs} and {self.images}")
        distillation(self.distill)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)
        refuse_unfit_teachers(self.distill, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        from edgekit.compress.distill.loss import distillation_loss
        from edgekit.compress.quantize.learned_step import convert, names_of, prepare
        from edgekit.compress.rewrite import remove_dropout
        from edgekit.evaluation import evaluate
        from edgekit.training import TrainingSettings, train

        dataset = context.dataset(self.name)
        before = bundle.module()
        remove_dropout(before)
        module = copy.deepcopy(before)
        plan, parameters, images = self._calibrated(before, bundle, context)
        if not plan.compute:
            raise StepError("there is no convolution or linear layer to quantize")
        edges = {plan.compute[0].name, plan.compute[-1].name}
        widths = {
            kind: {node.name: self.edge_bits if node.name in edges else bits for node in plan.compute}
            for kind, bits in (("weights", self.weight_bits), ("activations", self.activation_bits))
        }
        found = prepare(module, plan, parameters, widths["weights"], widths["activations"], images)
        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, schedule=self.schedule,
            weight_decay=self.weight_decay, augmentation=self.augmentation, precision=self.precision,
            keep=self.keep, seed=context.seed,
        )  # fmt: skip
        loss = distillation_loss(self.distill, module, bundle, seed=context.seed)
        result = train(
            module, dataset, bundle.preprocessing, settings, checkpoint=context.checkpoints,
            progress=context.progress, device=context.device, loss=loss,
        )  # fmt: skip
        convert(before, module, found, self.keep_float)
        after = bundle.with_module(before)
        converted = evaluate(after.module(), dataset.validation, bundle.preprocessing)
        names = names_of(plan)
        report = {
            "best_epoch": result.best_epoch,
            "best_validation_top1": result.best_validation_top1,
            "last_validation_top1": result.last_validation_top1,
            "converted_validation_top1": converted.top1,
            "quantized_layers": [
                {"layer": names[key], "bits": bits, "input_bits": widths["activations"][key]}
                for key, bits in widths["weights"].items()
            ],
            "history": result.history,
            **({"distill": loss.report} if loss is not None else {}),
        }
        return after, report

    def ensures(self, before: Bundle, after: Bundle) -> None:
        if after.precision != "int8":
            raise StepError("the result holds no integer weight", "Keep fewer layers in float.")

    def _calibrated(self, module: torch.fx.GraphModule, bundle: Bundle, context: Context) -> Any:
        """The plan on the folded graph, int8 parameters for it, and a few images."""
        from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
        from edgekit.compress.quantize.plan import make_plan
        from edgekit.compress.rewrite import fold_batch_norm
        from edgekit.data.dataset import to_inputs
        from edgekit.program import duplicate

        train = context.dataset(self.name).train
        chosen = np.random.default_rng(context.seed).permutation(len(train))[: self.images]
        images = to_inputs(train.images(np.sort(chosen)), bundle.preprocessing)
        folded = duplicate(module)
        fold_batch_norm(folded)
        plan = make_plan(folded, self.keep_float)
        parts = np.array_split(images, math.ceil(len(images) / _FEW))
        return plan, parameters_of(plan, observe_ranges(folded, plan, parts)), images[:_FEW]

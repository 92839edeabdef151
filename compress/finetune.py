"""Fine-tuning as a step of its own: trains the program on, with the one training loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekit.bundle import Bundle
from edgekit.compress.step import Context, Step
from edgekit.errors import StepError


@dataclass(frozen=True, kw_only=True)
class Finetune(Step):
    """Trains the network on its data.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Images for each step of the optimizer.
        learning_rate: Peak of the schedule.
        schedule: How the learning rate moves.
        optimizer: ``sgd`` is with Nesterov momentum.
        weight_decay: L2 penalty on the weights.
        label_smoothing: Share of the target spread over all classes.
        augmentation: ``auto`` is what the data set asks for.
        precision: Arithmetic of the training; the weights stay float32.
        keep: Hand back the epoch that is best on the validation split, or the last.
        distill: Weight of the soft targets of the network as it was before in the loss, 0 to 1; the rest is
            cross-entropy.
    """

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train the network on its data"
    source: ClassVar[str] = "Smith & Topin, arXiv:1708.07120 (one-cycle schedule)"
    example: ClassVar[str] = "epochs=1,learning_rate=0.01"

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.02
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    augmentation: Literal["auto", "none", "crop", "crop+flip"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    keep: Literal["best", "last"] = "best"
    distill: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if not 0 <= self.distill <= 1:
            raise ValueError(f"distill is a share between 0 and 1, not {self.distill:g}")

    def requires(self, bundle: Bundle) -> None:
        if bundle.precision != "float32":
            raise StepError("a quantized bundle can't be fine-tuned", "Put finetune before quantize.")

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        return self.train(bundle, context, teacher=bundle)

    def train(self, bundle: Bundle, context: Context, teacher: Bundle) -> tuple[Bundle, dict[str, Any]]:
        """The step for another that ends in it: what is distilled comes from ``teacher``."""
        from edgekit.training import TrainingSettings, soft_targets, train

        module = bundle.module()
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "distill"}
        result = train(
            module,
            context.dataset(self.name),
            bundle.preprocessing,
            TrainingSettings(**values, seed=context.seed),
            checkpoint=context.checkpoints,
            progress=context.progress,
            device=context.device,
            loss=soft_targets(teacher, self.distill, self.label_smoothing),
        )
        return bundle.with_module(module.cpu()), {
            "best_epoch": result.best_epoch,
            "best_validation_top1": result.best_validation_top1,
            "last_validation_top1": result.last_validation_top1,
            "history": result.history,
        }

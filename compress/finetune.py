"""Fine-tuning as a step of its own: trains the program on, with the one training loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, distillation
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
        distill: Share of the soft targets of the network as it was before in the loss, 0 to 1, the rest being
            cross-entropy; or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
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
    distill: Distillation | float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        distillation(self.distill)

    def requires(self, bundle: Bundle) -> None:
        if bundle.precision != "float32":
            raise StepError("a quantized bundle can't be fine-tuned", "Put finetune before quantize.")

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        return self.train(bundle, context, teacher=bundle)

    def train(self, bundle: Bundle, context: Context, teacher: Bundle) -> tuple[Bundle, dict[str, Any]]:
        """The step for another that ends in it: ``teacher`` is the network before that step."""
        from edgekit.compress.distill.loss import distillation_loss
        from edgekit.training import TrainingSettings, train

        context.dataset(self.name)  # ask for it before the work, not after
        module = bundle.module()
        loss = distillation_loss(
            self.distill, module, bundle, before=teacher, label_smoothing=self.label_smoothing, seed=context.seed
        )
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "distill"}
        result = train(
            module,
            context.dataset(self.name),
            bundle.preprocessing,
            TrainingSettings(**values, seed=context.seed),
            checkpoint=context.checkpoints,
            progress=context.progress,
            device=context.device,
            loss=loss,
        )
        return bundle.with_module(module.cpu()), {
            **({"distill": loss.report} if loss is not None else {}),
            "best_epoch": result.best_epoch,
            "best_validation_top1": result.best_validation_top1,
            "last_validation_top1": result.last_validation_top1,
            "history": result.history,
        }

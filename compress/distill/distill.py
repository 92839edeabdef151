"""Distillation as a step of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, MethodName
from edgekit.compress.finetune import Finetune
from edgekit.compress.step import Context, Step


@dataclass(frozen=True, kw_only=True)
class Distill(Step):
    """Trains the network to do as a teacher does, or several.

    The teacher must tell the same classes apart (or more, by name) at the same input size; where it only scales or
    normalizes images otherwise, it is shown them its own way.

    Attributes:
        teacher: A bundle folder or any other MODEL, with ``@FILE`` behind it where its weights are in a file of their own;
            several, or one text with ``+`` between them, are an ensemble (the mean of their softened outputs). ``before``
            is the network as it is now, ``ema`` the moving average of its own weights while it trains: for a
            network that is trained already; a few epochs from random weights gain nothing by it (measured).
        method: What is learnt: outputs (``soft-targets``, ``decoupled``), values inside (``hints``, ``attention``), or
            relations between images (``relational``, ``contrastive``).
        weight: Of ``soft-targets`` the share of the loss, 0 to 1, the rest being cross-entropy; of the others, and of what
            ``ema`` says, a factor, with cross-entropy added. None is what the method's authors took.
        temperature: Softens the outputs; of ``contrastive`` it scales similarities. None is what the method's authors took.
        layers: Where the network is looked into: names of layers, modules or nodes, or patterns of them. Chosen
            automatically if empty: the ends of stages, where the resolution changes, or the value before the head.
        teacher_layers: The same places of the teacher, in the same order; as ``layers`` if empty.
        epochs: Passes over the training split.
        batch_size: Images for each step of the optimizer.
        learning_rate: Peak of the schedule.
        schedule: How the learning rate moves.
        optimizer: ``sgd`` is with Nesterov momentum.
        weight_decay: L2 penalty on the weights.
        augmentation: ``auto`` is what the data set asks for.
        precision: Arithmetic of the training; the weights stay float32.
        keep: Hand back the epoch that is best on the validation split, or the last.
    """

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = "train the network to do as a teacher does, or several"
    source: ClassVar[str] = (
        "Hinton et al., arXiv:1503.02531 (soft targets, ensembles); Zhao et al., CVPR 2022 (decoupled); Romero et al., ICLR "
        "2015 (hints); Zagoruyko & Komodakis, ICLR 2017 (attention); Park et al., CVPR 2019 (relational); Tian et al., ICLR "
        "2020 (contrastive); Tarvainen & Valpola, NeurIPS 2017 (ema)"
    )
    example: ClassVar[str] = "teacher=zoo:digits-cnn,method=contrastive,epochs=2,learning_rate=0.01"

    teacher: tuple[str, ...]
    method: MethodName = "soft-targets"
    weight: float | None = None
    temperature: float | None = None
    layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.02
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 1e-4
    augmentation: Literal["auto", "none", "crop", "crop+flip"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        self._finetune()

    def requires(self, bundle: Bundle) -> None:
        self._finetune().requires(bundle)

    def reads(self) -> tuple[Path, ...]:
        return self._finetune().reads()

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        context.dataset(self.name)
        return self._finetune().apply(bundle, context)

    def _finetune(self) -> Finetune:
        distill = Distillation(
            teacher=self.teacher, method=self.method, weight=self.weight, temperature=self.temperature,
            layers=self.layers, teacher_layers=self.teacher_layers,
        )  # fmt: skip
        return Finetune(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, schedule=self.schedule,
            optimizer=self.optimizer, weight_decay=self.weight_decay, augmentation=self.augmentation,
            precision=self.precision, keep=self.keep, distill=distill,
        )  # fmt: skip

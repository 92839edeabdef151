"""The one training loop: fine-tuning, and whatever else trains through its ``loss``.

Deterministic: the same network, data, settings and seed give the same weights to the bit, also when the run was killed
and resumed. Every random choice is drawn from (seed, epoch, step), so a checkpoint needs no generator state.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from edgekit.data.augmentation import augment
from edgekit.data.dataset import to_inputs
from edgekit.errors import StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.files import atomic_file
from edgekit.program import set_training

if TYPE_CHECKING:
    from edgekit.data.dataset import Dataset
    from edgekit.data.preprocessing import Preprocessing

Loss = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From the network, inputs and labels to the loss and the outputs."""


class LossModule(torch.nn.Module):
    """A loss with parameters or a memory of its own, called as any :data:`Loss`.

    Its parameters train along with the network's, its state travels in the checkpoints, and both stay behind when the
    training ends.

    Attributes:
        fingerprint: What the loss depends on besides its state, a teacher for example: a checkpoint of another one is not
            taken up.
    """

    fingerprint: str = ""

    def begin(self, steps: int) -> None:
        """Told before the training, resumed or not, how many steps of the optimizer it has in all."""


class WithTerm(LossModule):
    """A loss and a further term that looks at the weights alone.

    Args:
        loss: The loss.
        term: Called before each forward pass; what it gives, if anything, is added.
    """

    def __init__(self, loss: Loss, term: Callable[[], torch.Tensor | None]) -> None:
        super().__init__()
        self.loss, self.term = loss, term
        self.fingerprint = loss.fingerprint if isinstance(loss, LossModule) else ""

    def begin(self, steps: int) -> None:
        if isinstance(self.loss, LossModule):
            self.loss.begin(steps)

    def forward(self, module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        term = self.term()
        value, outputs = self.loss(module, x, y)
        return (value if term is None else value + term), outputs


CHECKPOINT_EVERY_S = 30.0
# The share of the steps in which a one-cycle schedule climbs, and where it starts: Smith & Topin, arXiv:1708.07120.
_CLIMB, _START = 0.3, 0.04


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Images for each step.
        learning_rate: Peak of the schedule.
        schedule: How the learning rate moves with the step.
        optimizer: SGD with Nesterov momentum, or Adam.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        label_smoothing: Share of the target spread over all classes.
        augmentation: ``auto`` is what the data set asks for.
        precision: Arithmetic; the weights stay float32.
        keep: The epoch that is best on the validation split, or the last.
        seed: Of order and augmentation.
    """

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.02
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    augmentation: Literal["auto", "none", "crop", "crop+flip"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    keep: Literal["best", "last"] = "best"
    seed: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        history: For each epoch: epoch, seconds, learning_rate, train_loss, train_top1, validation_top1.
        best_epoch: Counted from 1; the first of equals.
        best_validation_top1: Percent.
        last_validation_top1: Percent.
        resumed_at_step: Where a checkpoint was taken up; 0 for none.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    best_validation_top1: float
    last_validation_top1: float
    resumed_at_step: int


def train(
    module: torch.fx.GraphModule,
    dataset: Dataset,
    preprocessing: Preprocessing | None,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    device: str = "cpu",
    loss: Loss | None = None,
) -> TrainingResult:
    """Trains a program's graph in place.

    Args:
        module: The graph; it ends in evaluation, with the weights of the epoch that ``keep`` names.
        dataset: Trains on ``train``, chooses on ``validation``, never looks at ``test``.
        preprocessing: Of the bundle.
        settings: How to train.
        checkpoint: A folder to resume from and to leave checkpoints in.
        progress: Told the steps done, their total, and a text.
        device: Where to train.
        loss: Cross-entropy if None. A :class:`LossModule` may have parameters of its own.

    Raises:
        StepError: If the loss is not finite.
        UsageError: If the device is not there.
    """
    from accelerate import Accelerator

    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"the device {device!r} is not available here", "Leave --device out to train on the CPU.")
    # Its own mixed precision is not used: it is fixed once for the process, and keeps calling the forward pass that the
    # graph had before it was switched to training.
    accelerator = Accelerator(cpu=device == "cpu")
    loss = loss or cross_entropy(settings.label_smoothing)
    run = _Run(module, dataset, preprocessing, settings, checkpoint, progress, loss)
    module.to(device=accelerator.device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            # Channels-last convolutions are faster in oneDNN; the parameters' values are the same.
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    if isinstance(loss, LossModule):
        loss.to(device=accelerator.device)
        loss.begin(run.total)
    optimizer = _optimizer(module, settings, loss)
    resumed = run.resume(optimizer)
    wrapped = accelerator.prepare_optimizer(optimizer)
    for epoch in range(len(run.history), settings.epochs):
        run.train_epoch(epoch, wrapped, accelerator)
    if settings.keep == "best":
        module.load_state_dict(run.best_state)
    module.to("cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        # Not .to(memory_format=…): it leaves the strides of 1×1 kernels, by which torch picks other sums than after a reload.
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    set_training(module, False)
    history = tuple(run.history)
    return TrainingResult(history, run.best_epoch, run.best_top1, float(history[-1]["validation_top1"]), resumed)


class _Run:
    """The state of one training, as its checkpoints hold it."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        dataset: Dataset,
        preprocessing: Preprocessing | None,
        settings: TrainingSettings,
        folder: Path | None,
        progress: Callable[[int, int, str], None] | None,
        loss: Loss,
    ) -> None:
        self.loss = loss
        self.module, self.dataset, self.preprocessing, self.settings = module, dataset, preprocessing, settings
        self.file = folder / "training.pt" if folder is not None else None
        self.progress = progress or (lambda done, total, text: None)
        self.steps_per_epoch = math.ceil(len(dataset.train) / settings.batch_size)
        self.total = self.steps_per_epoch * settings.epochs
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_top1 = 0, -1.0
        self.best_state: dict[str, torch.Tensor] = {}
        self.step = 0
        self.partial = {"loss": 0.0, "hits": 0.0, "seen": 0.0, "seconds": 0.0}
        self.saved_at = time.monotonic()
        self.fingerprint = _fingerprint(module, dataset, settings, loss)
        asked = settings.augmentation
        self.augmentation = dataset.augmentation if asked == "auto" else asked

    def train_epoch(self, epoch: int, optimizer: Any, accelerator: Any) -> None:
        settings, size = self.settings, self.settings.batch_size
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(self.dataset.train))
        start = time.monotonic() - self.partial["seconds"]
        set_training(self.module, True)
        for position in range(self.step - epoch * self.steps_per_epoch, self.steps_per_epoch):
            chosen = order[position * size : (position + 1) * size]
            x, y = self._batch(chosen, (settings.seed, epoch, position))
            rate = learning_rate(self.step, self.total, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                value, outputs = self.loss(self.module, x.to(accelerator.device), y.to(accelerator.device))
            number = float(value.detach())
            if not math.isfinite(number):
                raise StepError(
                    f"the loss is {number} at step {self.step} of epoch {epoch + 1}",
                    f"Lower the learning rate (now {settings.learning_rate:g}).",
                )
            optimizer.zero_grad()
            accelerator.backward(value)
            optimizer.step()
            self.step += 1
            self.partial["loss"] += number * len(chosen)
            self.partial["hits"] += float((outputs.detach().argmax(1).cpu() == y).sum())
            self.partial["seen"] += len(chosen)
            self.partial["seconds"] = time.monotonic() - start
            self.progress(self.step, self.total, f"training: epoch {epoch + 1}/{settings.epochs}, loss {number:.3f}")
            if time.monotonic() - self.saved_at > CHECKPOINT_EVERY_S:
                self.save(optimizer)
        self._finish_epoch(epoch)
        self.save(optimizer)

    def _batch(self, chosen: np.ndarray, seed: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        split = self.dataset.train
        images = augment(split.images(chosen), self.augmentation, seed)
        x = to_inputs(images, self.preprocessing)
        # Always a copy: torch aligns its memory and NumPy does not, and kernels may order their sums by alignment.
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        tensor = torch.from_numpy(x).clone(memory_format=layout)
        return tensor, torch.from_numpy(split.labels[chosen])

    def _finish_epoch(self, epoch: int) -> None:
        partial = self.partial
        found = evaluate(self.module, self.dataset.validation, self.preprocessing, device=_device_of(self.module))
        self.history.append(
            {
                "epoch": epoch + 1,
                "seconds": round(partial["seconds"], 3),
                "learning_rate": learning_rate(self.step - 1, self.total, self.settings),
                "train_loss": partial["loss"] / partial["seen"],
                "train_top1": 100 * partial["hits"] / partial["seen"],
                "validation_top1": found.top1,
            }
        )
        if found.top1 > self.best_top1:
            self.best_epoch, self.best_top1 = epoch + 1, found.top1
            self.best_state = {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()}
        self.partial = dict.fromkeys(partial, 0.0)
        text = f"training: epoch {epoch + 1}/{self.settings.epochs}, validation top-1 {found.top1:.2f} %"
        self.progress(self.step, self.total, text)

    def save(self, optimizer: Any) -> None:
        """Writes a checkpoint that replaces the last one when it is whole."""
        self.saved_at = time.monotonic()
        if self.file is None:
            return
        state = {
            "fingerprint": self.fingerprint,
            "module": self.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loss": self.loss.state_dict() if isinstance(self.loss, LossModule) else {},
            "best_state": self.best_state,
            "rest": json.dumps([self.step, self.history, self.best_epoch, self.best_top1, self.partial]),
        }
        content = io.BytesIO()
        torch.save(state, content)
        with atomic_file(self.file) as partial:
            # By ourselves: torch reports a full disk as a position that it did not expect.
            partial.write_bytes(content.getvalue())

    def resume(self, optimizer: torch.optim.Optimizer) -> int:
        """Takes up a checkpoint of this very training, if there is one; returns its step."""
        if self.file is None or not self.file.is_file():
            return 0
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                return 0
            rest = json.loads(state["rest"])
        except Exception:  # a file of another version or a damaged one: training starts again
            return 0
        self.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.loss, LossModule):
            self.loss.load_state_dict(state["loss"])
        self.best_state = state["best_state"]
        self.step, self.history, self.best_epoch, self.best_top1, self.partial = rest
        self.progress(self.step, self.total, f"training: resumed at step {self.step}")
        return self.step


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """The learning rate of a step; it depends on nothing but the step, so a resumed run goes on as it would have."""
    peak = settings.learning_rate
    done = step / max(total - 1, 1)
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if done < _CLIMB:
        return peak * (_START + (1 - _START) * 0.5 * (1 - math.cos(math.pi * done / _CLIMB)))
    return peak * 0.5 * (1 + math.cos(math.pi * (done - _CLIMB) / (1 - _CLIMB)))


def cross_entropy(smoothing: float = 0.0) -> Loss:
    """The loss of a training that has no other; ``smoothing`` is the share of the target spread over all classes."""

    def loss(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = module(x)
        return F.cross_entropy(outputs.float(), y, label_smoothing=smoothing), outputs

    return loss


def _optimizer(module: torch.nn.Module, settings: TrainingSettings, loss: Loss) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if isinstance(loss, LossModule):
        parameters += [p for p in loss.parameters() if p.requires_grad]
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _device_of(module: torch.nn.Module) -> str:
    return str(next(module.parameters()).device)


def _fingerprint(module: torch.fx.GraphModule, dataset: Dataset, settings: TrainingSettings, loss: Loss) -> str:
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    digest.update(dataset.train.digest.encode())
    digest.update(dataset.validation.digest.encode())
    digest.update(module.code.encode())
    state = sorted(copy.copy(module.state_dict()).items())
    if isinstance(loss, LossModule):
        digest.update(loss.fingerprint.encode())
        state += sorted(loss.state_dict().items())
    for name, tensor in state:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

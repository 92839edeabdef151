"""Teachers: networks that are asked and do not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.distill.method import Seen
from edgekit.compress.distill.settings import BEFORE, EMA, Distillation, split_reference
from edgekit.compress.distill.taps import Look
from edgekit.errors import EdgekitError, UsageError
from edgekit.program import set_training
from edgekit.simulation import simulator


class Teacher:
    """One network, or several as an ensemble: the mean of their outputs softened by a temperature (Hinton, section 1).

    Args:
        bundles: The networks, each fit for the student; see :func:`fit`.
        student: Whose inputs they are shown and whose classes are asked for.
        temperature: At which an ensemble's outputs are averaged.
    """

    def __init__(self, bundles: Sequence[Bundle], student: Bundle, temperature: float = 1.0) -> None:
        self.bundles, self.temperature = tuple(bundles), temperature
        self.modules: list[GraphModule] = []
        self.places: tuple[str, ...] = ()
        """Names of the nodes that are looked into; of a single network."""
        self._look = Look(())
        self._inputs = [_change_of_inputs(bundle, student) for bundle in bundles]
        self._classes = [_classes(bundle, student) for bundle in bundles]
        for bundle in bundles:
            module = simulator(set_training(bundle.module(), False))
            for parameter in module.parameters():
                parameter.requires_grad_(False)
            self.modules.append(module)

    @property
    def fingerprint(self) -> str:
        """Of all networks."""
        return "+".join(bundle.fingerprint for bundle in self.bundles)

    def look_into(self, places: Sequence[str]) -> None:
        """From now on, the values at these nodes are handed out too."""
        self.places, self._look = tuple(places), Look(places)

    def follow(self, module: torch.nn.Module) -> None:
        """Nothing: it does not learn from the student."""

    def __call__(self, x: torch.Tensor) -> Seen:
        """What is seen of it for the student's inputs, shape (n, …), without gradient."""
        with torch.no_grad():
            seen = [self._ask(index, x) for index in range(len(self.modules))]
            if len(seen) == 1:
                return seen[0]
            shares = torch.stack([F.log_softmax(one.outputs.float() / self.temperature, dim=1) for one in seen])
            # As outputs again: their softmax at this temperature is the mean of the softened outputs.
            return Seen(self.temperature * (shares.logsumexp(0) - math.log(len(seen))))

    def _ask(self, index: int, x: torch.Tensor) -> Seen:
        module = self.modules[index].to(device=x.device, memory_format=torch.channels_last)
        change, classes = self._inputs[index], self._classes[index]
        if change is not None:
            factor, offset = (part.to(x.device) for part in change)
            x = x * factor + offset
        seen = self._look(module, x)
        return seen if classes is None else Seen(seen.outputs[:, classes], seen.features)


def load_teacher(reference: str, before: Bundle) -> Bundle:
    """The bundle behind a reference such as ``big`` or ``zoo:resnet56-cifar@resnet56.safetensors``.

    A factory, ``.pt2`` or ``.onnx`` says nothing about preprocessing: it is taken to be the student's.

    Raises:
        UsageError: If it can't be loaded, or has random weights.
    """
    if reference == BEFORE:
        return before
    from edgekit.sources.load import load

    model, weights = split_reference(reference)
    knows_its_images = model.startswith("zoo:") or Path(model).is_dir()
    try:
        bundle = load(model, weights=weights, input_shape=None if knows_its_images else before.input_shape)
    except EdgekitError as error:
        raise UsageError(f"the teacher {reference!r}: {error.what}", error.remedy) from error
    if bundle.source.get("untrained") and not bundle.steps:
        raise UsageError(
            f"the teacher {reference!r} has random weights", f"Give its weights behind an @: {model}@FILE.safetensors."
        )
    return bundle if knows_its_images else replace(bundle, preprocessing=before.preprocessing)


def refuse_unfit_teachers(settings: Distillation | float, student: Bundle) -> None:
    """For steps that work long before they train: raises now what :class:`Teacher` or loading one would raise then."""
    if isinstance(settings, Distillation) and not {BEFORE, EMA} & set(settings.references):
        Teacher([load_teacher(reference, student) for reference in settings.references], student)


def _classes(teacher: Bundle, student: Bundle) -> list[int] | None:
    """Which of the teacher's outputs are the student's, in its order; None if they are the same."""
    ours, theirs = student.labels, teacher.labels
    if ours and theirs:
        if ours == theirs:
            return None
        missing = [name for name in ours if name not in theirs]
        if missing:
            raise UsageError(
                f"the teacher {teacher.name} has no output for {', '.join(missing[:5])}",
                f"Its classes: {', '.join(theirs[:12])}{', …' if len(theirs) > 12 else ''}.",
            )
        return [theirs.index(name) for name in ours]
    counts = [math.prod(bundle.describe()["output"]["shape"][1:]) for bundle in (student, teacher)]
    if counts[0] != counts[1]:
        raise UsageError(
            f"the teacher {teacher.name} gives {counts[1]} outputs and the network {counts[0]}",
            "Both must tell the same classes apart.",
        )
    return None


def _change_of_inputs(teacher: Bundle, student: Bundle) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Factor and offset for each channel that turn the student's inputs into the teacher's; None if they are the same."""
    if teacher.input_shape != student.input_shape:
        raise UsageError(
            f"the teacher {teacher.name} takes inputs of shape {teacher.input_shape}, the network {student.input_shape}",
            "Both are shown the same inputs: take a teacher of the same size.",
        )
    ours, theirs = student.preprocessing, teacher.preprocessing
    if ours == theirs:
        return None
    same = ours is not None and theirs is not None
    for name in ("size", "color", "layout"):
        if ours is None or theirs is None or getattr(ours, name) != getattr(theirs, name):
            what = (
                f"{name} {getattr(theirs, name)} and not {getattr(ours, name)}" if same else "one of them is not known"
            )
            raise UsageError(
                f"the teacher {teacher.name} takes its images otherwise than the network: {what}",
                "Give both the same preprocessing; only scale, mean and std may differ.",
            )
    assert ours is not None
    assert theirs is not None
    # x = (p s - m) / d for both, so x' = (x d / s + m / s) s' / d' - m' / d'.
    scale, mean, std = ([torch.tensor(getattr(p, n), dtype=torch.float64) for p in (ours, theirs)] for n in _NORMAL)
    factor = std[0] / scale[0] * scale[1] / std[1]
    offset = mean[0] / scale[0] * scale[1] / std[1] - mean[1] / std[1]
    shape = (-1, 1, 1) if ours.layout == "NCHW" else (-1,)
    return factor.float().reshape(shape), offset.float().reshape(shape)


_NORMAL = ("scale", "mean", "std")

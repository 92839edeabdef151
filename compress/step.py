"""What a compression step is, and the registry of steps.

A step is a pass over a bundle's program: a frozen, keyword-only dataclass of settings with ``apply``. Adding one means
adding its file and one line in ``STEPS``: that gives it its name on the command line and in recipes, its row in
``edgekit compress --list``, and the conformance tests of :mod:`edgekit.testing.steps`.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgekit import settings as settings_of
from edgekit.compress.distill.settings import Distillation
from edgekit.errors import StepError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.data.dataset import Dataset

STEPS: Mapping[str, str] = {
    "keep-classes": "edgekit.compress.prune.classes:KeepClasses",
    "sparse-train": "edgekit.compress.prune.sparse_training:SparseTraining",
    "prune-channels": "edgekit.compress.prune.channels:PruneChannels",
    "factorize": "edgekit.compress.factorize.low_rank:Factorize",
    "prune-weights": "edgekit.compress.prune.weights:PruneWeights",
    "student": "edgekit.compress.compact.student:MakeStudent",
    "equalize": "edgekit.compress.quantize.equalize:Equalize",
    "quantize": "edgekit.compress.quantize.static:Quantize",
    "qat": "edgekit.compress.quantize.qat:QuantizationAwareTraining",
    "share-weights": "edgekit.compress.quantize.codebook.share:ShareWeights",
    "powers-of-two": "edgekit.compress.quantize.codebook.power:PowersOfTwo",
    "rewrite": "edgekit.compress.rewrite.step:Rewrite",
    "finetune": "edgekit.compress.finetune:Finetune",
    "distill": "edgekit.compress.distill.distill:Distill",
}
"""Every step by its name, with the place of its class: imported only when it is used."""


class Progress(Protocol):
    """Told how far a long work has come."""

    def __call__(self, done: int, total: int, text: str) -> None: ...


def no_progress(done: int, total: int, text: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step may use besides its settings.

    Attributes:
        data: The data set; None when the user gave none.
        device: Where to train, as torch names it.
        seed: Of every random choice.
        progress: Told how far the work has come.
        checkpoints: A folder of the step's own, kept until the whole pipeline is done: a killed step resumes from it.
    """

    data: Dataset | None = None
    device: str = "cpu"
    seed: int = 0
    progress: Progress = field(default=no_progress)
    checkpoints: Path | None = None

    def dataset(self, step: str) -> Dataset:
        """The data set, for a step that can't do without.

        Raises:
            UsageError: If there is none.
        """
        if self.data is None:
            raise UsageError(f"{step} needs data, and none was given", "Give --data, for example --data digits.")
        return self.data


@dataclass(frozen=True, kw_only=True)
class Step(abc.ABC):
    """Base of all steps.

    An implementation guarantees: the bundle given is not changed; with the same bundle, settings, data and seed it
    gives the same bundle to the bit, also when it was killed and resumed; what it returns holds no mask, no
    fake-quantizer and no second copy of a weight, and runs, trains and saves like any other bundle.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    """The paper or document that the technique follows."""
    example: ClassVar[str]
    """Settings as typed after ``NAME:`` that show what the step does in seconds; help and conformance tests use them."""

    def requires(self, bundle: Bundle) -> None:
        """Checks that the step can be applied to the bundle.

        Raises:
            StepError: If not, with the reason.
        """

    def reads(self) -> tuple[Path, ...]:
        """Files that the settings name, such as a teacher's: a resumed pipeline starts again where one has changed."""
        values = (getattr(self, setting.name) for setting in dataclasses.fields(self))
        return tuple(path for value in values if isinstance(value, Distillation) for path in value.files())

    @abc.abstractmethod
    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        """Applies the technique.

        Args:
            bundle: The bundle to compress; never changed.
            context: Data, device, seed, progress and checkpoints.

        Returns:
            The new bundle and a report of JSON values: what was changed, where, and what was left alone and why.
        """

    def ensures(self, before: Bundle, after: Bundle) -> None:
        """Checks what the step promises of its result.

        Raises:
            StepError: If the promise is not kept.
        """

    def to_dict(self) -> dict[str, Any]:
        """``{"step": name, settings…}``, as in a recipe."""
        return {"step": self.name, **settings_of.to_dict(self)}


def needs_float_weights(step: Step, bundle: Bundle, *, sparse: bool = False) -> None:
    """Refuses a bundle whose weights have been given another form.

    Args:
        step: Who asks.
        bundle: What it was given.
        sparse: Sparse weights will do.

    Raises:
        StepError: If a step before has quantized or coded them.
    """
    if bundle.weights != "float32" and not (sparse and bundle.weights == "sparse"):
        how = {"int8": "quantized", "codes": "codes into a table of values", "sparse": "sparse"}[bundle.weights]
        raise StepError(
            f"{step.name} needs float weights, and those of this bundle are {how} already",
            f"Put {step.name} before that step, or start from the bundle before it.",
        )


def step_class(name: str) -> type[Step]:
    """The class of a registered step.

    Raises:
        UnknownNameError: If there is no such step.
    """
    if name not in STEPS:
        raise UnknownNameError("step", name, STEPS)
    module, _, attribute = STEPS[name].partition(":")
    found: type[Step] = getattr(importlib.import_module(module), attribute)
    return found


def make_step(name: str, values: Mapping[str, Any]) -> Step:
    """A step from its name and settings (text or YAML values)."""
    return settings_of.build(step_class(name), values, what=f"the step {name}")


def parse_step(text: str) -> Step:
    """A step from ``NAME`` or ``NAME:key=value,key=value``, as typed after ``--step``."""
    name, _, values = text.partition(":")
    return make_step(name.strip(), settings_of.parse_text(values))


def describe_steps() -> list[dict[str, Any]]:
    """Name, summary, source, example and settings with defaults of every registered step."""
    rows = []
    for name in STEPS:
        cls = step_class(name)
        fields = {
            f.name: "required" if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(cls)
        }
        example = f"{name}:{cls.example}" if cls.example else name
        rows.append(
            {"name": name, "summary": cls.summary, "source": cls.source, "example": example, "settings": fields}
        )
    return rows


__all__ = [
    "STEPS",
    "Context",
    "Progress",
    "Step",
    "StepError",
    "describe_steps",
    "make_step",
    "needs_float_weights",
    "no_progress",
    "parse_step",
    "step_class",
]

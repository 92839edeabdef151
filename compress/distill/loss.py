"""The loss of a training that distils: what every step that trains asks for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from edgekit import settings as settings_of
from edgekit.bundle import Bundle
from edgekit.compress.distill.method import Method, Seen, method_class
from edgekit.compress.distill.own_average import OwnAverage
from edgekit.compress.distill.settings import EMA, Distillation, distillation
from edgekit.compress.distill.taps import Look, before_head, named, shape, stage_ends
from edgekit.compress.distill.teacher import Teacher, load_teacher
from edgekit.errors import UsageError
from edgekit.program import layer_name
from edgekit.training import LossModule


class DistillationLoss(LossModule):
    """Cross-entropy and what a method makes of student and teacher.

    Args:
        method: The method, with the parameters that train along.
        teacher: Asked for each batch.
        places: Names of the student's nodes that are looked into.
        weight: Of the method's term.
        share: Whether the weight is a share of the whole, cross-entropy having the rest; else it has 1.
        label_smoothing: Of the cross-entropy.
        report: What a step tells about it.
    """

    def __init__(
        self,
        method: Method,
        teacher: Teacher | OwnAverage,
        places: tuple[str, ...],
        *,
        weight: float,
        share: bool,
        label_smoothing: float,
        report: dict[str, Any],
    ) -> None:
        super().__init__()
        self.method, self.teacher = method, teacher
        self.weight, self.share, self.label_smoothing = weight, share, label_smoothing
        self.report = report
        self.fingerprint = hashlib.sha256(json.dumps([report, label_smoothing], sort_keys=True).encode()).hexdigest()
        self._look = Look(places)

    def begin(self, steps: int) -> None:
        if isinstance(self.teacher, OwnAverage):
            self.teacher.begin(steps)

    def forward(self, module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.teacher.follow(module)
        known, seen = _in_float32(self.teacher(x)), _in_float32(self._look(module, x))
        with torch.autocast(x.device.type, enabled=False):
            term = self.method(seen, known, y)
            hard = F.cross_entropy(seen.outputs, y, label_smoothing=self.label_smoothing)
        weight = self.weight * (self.teacher.trusted() if isinstance(self.teacher, OwnAverage) else 1.0)
        return weight * term + (1.0 - weight if self.share else 1.0) * hard, seen.outputs


def _in_float32(seen: Seen) -> Seen:
    return Seen(seen.outputs.float(), tuple(value.float() for value in seen.features))


def distillation_loss(
    settings: Distillation | float,
    module: GraphModule,
    student: Bundle,
    *,
    before: Bundle | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> DistillationLoss | None:
    """The loss of a step's setting ``distill``.

    Args:
        settings: The setting; a number is the share of the soft targets of the network before the step.
        module: The graph that will be trained.
        student: The bundle it belongs to: its preprocessing and labels are what the training shows.
        before: The network that the teacher ``before`` means; the student's bundle if None.
        label_smoothing: Of the cross-entropy.
        seed: Of the parameters that train along.

    Returns:
        None if there is nothing to distil, a share of 0.

    Raises:
        UsageError: If a teacher can't be loaded, or does not fit the student.
        StepError: If no place to look into is found.
    """
    chosen = distillation(settings)
    if chosen is None:
        return None
    kind = method_class(chosen.method)
    temperature = kind.default_temperature if chosen.temperature is None else chosen.temperature
    own = chosen.references == (EMA,)
    bundles = [] if own else [load_teacher(name, before or student) for name in chosen.references]
    asked = None if own else Teacher(bundles, student, temperature)
    pairs: list[tuple[Node, Node]] = []
    if kind.looks_at != "outputs":
        if len(bundles) > 1:
            raise UsageError(
                f"{chosen.method} looks into one teacher, and {len(bundles)} were given",
                "An ensemble has outputs in common alone: take soft-targets or decoupled.",
            )
        pairs = pair(chosen, kind.looks_at, module, module if asked is None else asked.modules[0])
    places = tuple(ours.name for ours, _ in pairs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = kind([(shape(ours), shape(theirs)) for ours, theirs in pairs], temperature)
    teacher: Teacher | OwnAverage
    if asked is None:
        teacher = OwnAverage(module, places)
    else:
        teacher = asked
        teacher.look_into([theirs.name for _, theirs in pairs])
    weight = kind.default_weight if chosen.weight is None else chosen.weight
    report = {
        **settings_of.to_dict(chosen),
        "weight": weight,
        "temperature": temperature,
        "teachers": [{"name": bundle.name, "fingerprint": bundle.fingerprint} for bundle in bundles],
        "looked_into": [[layer_name(ours), layer_name(theirs)] for ours, theirs in pairs],
    }
    # Cross-entropy keeps its whole weight beside what the network says of itself (Tarvainen & Valpola, section 2).
    share = chosen.method == "soft-targets" and not own
    return DistillationLoss(
        method, teacher, places, weight=weight, share=share, label_smoothing=label_smoothing, report=report
    )


def pair(chosen: Distillation, looks_at: str, student: GraphModule, teacher: GraphModule) -> list[tuple[Node, Node]]:
    """The places of the student and those of the teacher that belong together.

    Those chosen automatically go together by their resolution, or else in order from the end.

    Raises:
        UsageError: If names give more places of one than of the other, or values that can't be compared.
    """
    if chosen.layers or chosen.teacher_layers:
        ours = named(student, chosen.layers or chosen.teacher_layers, "the network")
        theirs = named(teacher, chosen.teacher_layers or chosen.layers, "the teacher")
        if len(ours) != len(theirs):
            raise UsageError(
                f"layers are {len(ours)} places of the network and {len(theirs)} of the teacher",
                "Name the same number of each, in the order in which they belong together.",
            )
        pairs = list(zip(ours, theirs, strict=True))
    elif looks_at == "embedding":
        pairs = [(before_head(student), before_head(teacher))]
    else:
        ends, others = stage_ends(student), stage_ends(teacher)
        by_size = {shape(node)[2:]: node for node in others}
        pairs = [(node, by_size[shape(node)[2:]]) for node in ends if shape(node)[2:] in by_size]
        count = min(len(ends), len(others))
        pairs = pairs or list(zip(ends[-count:], others[-count:], strict=True))
        if looks_at == "middle":
            pairs = [pairs[(len(pairs) - 1) // 2]]
    for ours_at, theirs_at in pairs if looks_at != "embedding" else ():
        ranks = len(shape(ours_at)), len(shape(theirs_at))
        if ranks[0] != ranks[1] or (looks_at == "stages" and ranks[0] != 4):
            raise UsageError(
                f"{chosen.method} can't compare {layer_name(ours_at)} {shape(ours_at)} with {layer_name(theirs_at)} "
                f"{shape(theirs_at)} of the teacher",
                "Name layers whose values are maps of channels, height and width.",
            )
    return pairs

"""From a network for all classes, one for a few: the outputs of the others are cut from its head.

What follows is made for these classes alone, because every later step, the training and the figures see the data set
without the others: importance by data is conditional on the classes, refitting keeps only what they need of each layer,
and the training tells them apart and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.bundle import Bundle
from edgekit.compress.prune.flow import Flow, Labels, analyse
from edgekit.compress.prune.moments import moments
from edgekit.compress.prune.reconstruct import images_at_once
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.surgery import cut
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.data.dataset import OTHER, to_inputs
from edgekit.errors import StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.program import aten, attribute, output_node, set_attribute
from edgekit.walk import Walk

if TYPE_CHECKING:
    from edgekit.data.dataset import Dataset

# What turns outputs into probabilities: over fewer classes it is still that.
_SOFTMAX = (aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default)
# Training images on which the output for all other classes is fitted, and the ridge against the features' variance.
_IMAGES, _RIDGE = 1024, 1e-3


@dataclass(frozen=True, kw_only=True)
class KeepClasses(Step):
    """Keeps the outputs of some classes and cuts the rest of the head.

    Attributes:
        classes: Names of the classes to keep, or their places from 0.
        other: Keep one more output, for images of all other classes: it is fitted to the log of the sum of their
            exponentials, so that its softmax begins as the sum of theirs.
    """

    name: ClassVar[str] = "keep-classes"
    summary: ClassVar[str] = "keep some classes, cut the others out of the head; later steps see these classes alone"
    source: ClassVar[str] = "edgekit; the other output: least squares on log-sum-exp of the outputs that go"
    example: ClassVar[str] = "classes=[1,4,7]"

    classes: tuple[str, ...]
    other: bool = False

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("name the classes to keep, for example classes=[3,5,7]")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        if len(self.classes) + self.other < 2:
            raise ValueError("one class alone leaves nothing to tell apart: keep two, or add other=true")

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        names = list(bundle.labels) or (list(context.data.labels) if context.data is not None else [])
        if not names:
            raise UsageError(
                f"{self.name} needs the names of the classes, and the network has none", "Give --data that names them."
            )
        places = self._places(names)
        module = bundle.module()
        flow, labels = _outputs(module, len(names))
        if self.other:
            if context.data is None:
                raise UsageError(f"{self.name} needs data to fit the output 'other'", "Give --data, or leave it out.")
            _fit_other(module, flow, labels, places, context.data, bundle, context.seed)
        order = _cut_head(flow, labels, places, self.other)
        kept = (*(names[place] for place in order), *((OTHER,) if self.other else ()))
        after = replace(bundle.with_module(module), labels=kept)
        report: dict[str, Any] = {"kept": list(kept), "outputs": {"before": len(names), "after": len(kept)}}
        if context.data is not None:
            report |= _as_found(bundle, after, context.data)
        return after, report

    def ensures(self, before: Bundle, after: Bundle) -> None:
        (outputs,) = after.describe()["output"]["shape"][1:]
        if outputs != len(after.labels):
            raise StepError(f"the head gives {outputs} outputs for {len(after.labels)} classes")

    def _places(self, names: list[str]) -> list[int]:
        found = []
        for text in self.classes:
            if text in names:
                found.append(names.index(text))
            elif text.isdigit() and int(text) < len(names):
                found.append(int(text))
            else:
                shown = ", ".join(f"{place} {name}" for place, name in enumerate(names[:12]))
                raise UsageError(f"there is no class {text!r}", f"Classes: {shown}{', …' if len(names) > 12 else ''}.")
        if len(set(found)) < len(found):
            raise UsageError("a class is named twice", "Once by its name and once by its place?")
        if len(found) == len(names):
            raise UsageError("all classes are kept, so there is nothing to cut", "Leave some out.")
        return sorted(found)


def _outputs(module: GraphModule, classes: int) -> tuple[Flow, Labels]:
    """The analysis of the graph with its outputs free to be cut, and their channels."""
    output = output_node(module)
    softmax = output if output.target in _SOFTMAX else None
    if softmax is not None:
        output = softmax.args[0]  # type: ignore[assignment]
    rules = {**RULES, **{target: lambda flow, node: flow.labels(node.args[0]) for target in _SOFTMAX}}
    flow = analyse(module, rules, frozen_outputs=False)
    labels = flow.labels(output)
    if not isinstance(labels, Labels) or len(labels.ids) != classes:
        raise StepError(
            "the head can't be cut: its outputs can't be followed back to a layer with one row for each class",
            "The network must end in a linear layer or convolution, with pooling, flatten or softmax behind it.",
        )
    roots = flow.roots(labels.ids)
    if len(set(roots.tolist())) < classes or any(flow.is_frozen(int(root)) for root in roots):
        raise StepError("the head can't be cut: its outputs are coupled with each other or with an operator that stays")
    return flow, labels


def _cut_head(flow: Flow, labels: Labels, places: list[int], other: bool) -> list[int]:
    """Cuts all outputs but these; the one that stands for the others, if any, is moved to the end."""
    roots = flow.roots(labels.ids)
    stays = [*places, _stand_in(places, len(roots))] if other else places
    removed = {int(root) for place, root in enumerate(roots) if place not in stays}
    bound = [slot for slot in flow.slots if slot.role != "in" and set(flow.roots(slot.ids)) == set(roots)]
    cut(flow, removed)
    if other:
        now = sorted(stays)
        order = torch.tensor([now.index(place) for place in stays])
        for slot in bound:
            tensor = attribute(flow.module, slot.parameter)
            value = tensor.detach().index_select(slot.dim, order)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            set_attribute(flow.module, slot.parameter, torch.nn.Parameter(value) if is_parameter else value)
    return places


def _stand_in(places: list[int], classes: int) -> int:
    """The output that becomes the one for all others: the first of them."""
    return next(place for place in range(classes) if place not in places)


def _fit_other(
    module: GraphModule, flow: Flow, labels: Labels, places: list[int], data: Dataset, bundle: Bundle, seed: int
) -> None:
    """Fits the stand-in's row to the log-sum-exp of all outputs that go, by least squares on training images."""
    head = next(
        (s.node for s in flow.slots if s.role == "out" and np.array_equal(flow.roots(s.ids), flow.roots(labels.ids))),
        None,
    )
    if head is None or head.target is not aten.linear.default or not isinstance(head.args[0], Node):
        raise StepError("an output for all other classes can be fitted only where the head is a linear layer")
    goes = [place for place in range(len(labels.ids)) if place not in places]
    train = data.train
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[: images_at_once(module, _IMAGES)])
    images = torch.from_numpy(to_inputs(train.images(chosen), bundle.preprocessing))
    walk = Walk(module, images.split(32), [head.name])
    with torch.no_grad():
        _, values = next(walk.steps())
        inputs = walk.now(head.args[0])
        assert inputs is not None
        targets = [value[..., goes].logsumexp(-1, keepdim=True) for value in values]
        found = moments(head, inputs, targets, seed=seed)
        ridge = _RIDGE * float(found.xx.diagonal().mean()) * torch.eye(len(found.xx), dtype=torch.float64)
        row = torch.linalg.solve(found.xx + ridge, found.xy)[:, 0]
        stand_in = _stand_in(places, len(labels.ids))
        attribute(module, str(head.args[1].target))[stand_in] = row  # type: ignore[union-attr]
        if len(head.args) > 2 and isinstance(head.args[2], Node):
            attribute(module, str(head.args[2].target))[stand_in] = float(found.y[0] - row @ found.x)


def _as_found(before: Bundle, after: Bundle, data: Dataset) -> dict[str, Any]:
    """How the whole network does on these classes, restricted to them, before anything is made smaller."""
    seen = data.seen_by(after.labels)
    whole = evaluate(after.module(), seen.validation, before.preprocessing, names=after.labels)
    return {
        "validation_top1": whole.top1,
        "per_class": list(whole.per_class),
        "notes": [
            f"{len(after.labels)} of {len(data.labels)} classes: {', '.join(seen.notes[-1:])}; validation top-1 among them "
            f"{whole.top1:.2f} %"
        ],
    }

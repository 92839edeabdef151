"""Channel pruning: whole channels are cut out of every layer that shares them, and the rest is fine-tuned."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress import samples
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.distill.teacher import refuse_unfit_teachers
from edgekit.compress.finetune import Finetune
from edgekit.compress.prune.flow import Flow, analyse
from edgekit.compress.prune.importance import ABREAST, FROM_DATA, Batches, Importance, class_scores
from edgekit.compress.prune.reconstruct import Refit, Stays, images_at_once, kept_positions, reconstruct
from edgekit.compress.prune.recurrent import GATES, parameter_costs
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.selection import select
from edgekit.compress.prune.stopwatch import (
    Cut,
    Stopwatch,
    Trial,
    align,
    doubts,
    finer_from,
    meet_on,
    parse_goal,
    refuse_unknown_clock,
)
from edgekit.compress.prune.surgery import cut
from edgekit.compress.step import Context, Progress, Step, needs_float_weights, no_progress
from edgekit.cost import Cost, cost_of
from edgekit.errors import StepError
from edgekit.files import write_json
from edgekit.program import aten, attribute, duplicate, layer_name, refresh_values, shape_of


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Step):
    """Cuts channels, physically, on the exported program.

    Give one goal: ``macs``, ``parameters``, ``size``, ``latency`` (the share to keep) or ``ratio`` (the share of MACs to cut).
    Channels that meet in residual additions, concatenations, depthwise and grouped convolutions go together. With data at
    hand, the weights that are left are fitted to what each layer gave before the cut; with ``epochs`` above zero the
    network is fine-tuned afterwards.

    Attributes:
        macs: Share of the multiply-accumulates to keep, between 0 and 1.
        parameters: Share of the parameters of convolutions and linear layers to keep, between 0 and 1.
        size: Share of the weights' bytes to keep, between 0 and 1: all that the bundle stores of them, batch norm included.
        ratio: Share of the multiply-accumulates to cut; ``ratio=0.5`` is ``macs=0.5``.
        latency: Share of the measured latency to keep and the format in whose runtime to measure it, by trials with one
            thread: ``0.5@tflite`` on this machine, ``0.5@tflite@ssh:pi@board`` on that target.
        importance: What ranks channels, together with all that are coupled: the norm of their weights (``l1``, ``l2``, or
            ``energy``, which is for cutting in ``rounds``), their filters' distance
            to the others of the layer (``geometric-median``), the scale of batch norm, or chance, as a control; or, by
            ``images`` training images, the change of the loss to first (``taylor``) or second order (``fisher``), what it
            brings to the layers that read it (``lasso``), or that and what it does for telling the classes apart
            (``discrimination``).
        scope: Rank all channels together, or cut the same share everywhere.
        floor: Share of its channels that every layer keeps.
        keep: Name patterns of layers whose channels all stay, with those that go together with them: ``[*.conv2]`` of a
            residual network keeps what runs through its blocks.
        multiple: Cut a multiple of so many channels of the same layers at a time: widths stay multiples of it. Runtimes have
            their fast kernels for multiples of 4, 8 or 16 channels, and a width between may be slower than the original.
        align: A format in whose runtime the multiples 1 to 32 are tried; the fastest takes the place of ``multiple``. A target
            may follow, as in ``latency``.
        images: How many training images the importance looks at.
        reconstruct: On how many training images the weights that are left are fitted to each layer's output before the
            cut, by least squares; 0 leaves them as they are. It is what a few steps of training, or none, can't do without;
            ResNet-56, trained afterwards for two epochs of 45 000 images, ended higher without it (``benches/resnet56.py``).
        rounds: Cut in so many rounds, each the same share of what is left, with ``between`` epochs after all but the last.
        between: Epochs of fine-tuning between rounds; with 0 they are small steps of one cut, each ranked by what is left.
        epochs: Epochs of fine-tuning after the (last) cut.
        learning_rate: Peak learning rate of the fine-tuning.
        distill: Share of the original network's soft targets in the fine-tuning's loss, 0 to 1, the rest being cross-entropy;
            or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
    """

    name: ClassVar[str] = "prune-channels"
    summary: ClassVar[str] = "cut whole channels out of every layer that shares them, then fine-tune"
    source: ClassVar[str] = (
        "Li et al., ICLR 2017 (L1); He et al., IJCAI 2018 (L2) and CVPR 2019 (geometric median); Liu et al., ICCV 2017 (batch "
        "norm); Molchanov et al., CVPR 2019 (Taylor); Theis et al., arXiv:1801.05787 (Fisher); He et al., ICCV 2017 (LASSO, "
        "reconstruction); Zhuang et al., NeurIPS 2018 (discrimination); Fang et al., CVPR 2023 (groups)"
    )
    example: ClassVar[str] = "macs=0.6,epochs=1"

    macs: float | None = None
    parameters: float | None = None
    size: float | None = None
    ratio: float | None = None
    latency: str | None = None
    importance: Importance = "l2"
    images: int = 512
    reconstruct: int = 512
    scope: Literal["global", "layer"] = "global"
    floor: float = 0.1
    keep: tuple[str, ...] = ()
    multiple: int = 8
    align: str | None = None
    rounds: int = 1
    between: int = 1
    epochs: int = 5
    learning_rate: float = 0.02
    distill: Distillation | float = 0.0

    def __post_init__(self) -> None:
        timed = parse_goal(self.latency)[0] if self.latency is not None else None
        goals = [goal for goal in (self.macs, self.parameters, self.size, self.ratio, timed) if goal is not None]
        if len(goals) != 1:
            raise ValueError("give exactly one goal: macs, parameters, size, latency or ratio, for example macs=0.5")
        if not 0 < goals[0] < 1:
            raise ValueError(f"a goal is a share between 0 and 1, not {goals[0]:g}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share between 0 and 1, not {self.floor:g}")
        for name, least in (
            ("multiple", 1),
            ("images", 1),
            ("rounds", 1),
            ("reconstruct", 0),
            ("between", 0),
            ("epochs", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for clock in (self.align, parse_goal(self.latency)[1] if self.latency is not None else None):
            if clock is not None:
                refuse_unknown_clock(clock)
        distillation(self.distill)

    @property
    def goal(self) -> tuple[str, float]:
        """What is limited (``macs``, ``parameters``, ``bytes`` or ``latency``) and the share to keep."""
        if self.latency is not None:
            return "latency", parse_goal(self.latency)[0]
        if self.parameters is not None:
            return "parameters", self.parameters
        if self.size is not None:
            return "bytes", self.size
        return "macs", self.macs if self.macs is not None else 1 - float(self.ratio or 0)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)
        refuse_unfit_teachers(self.distill, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        if self.epochs or (self.rounds > 1 and self.between):
            context.dataset(self.name)  # ask for it before the work, not after
        if self.latency is not None or self.align is not None:
            settled, timed = self._by_the_stopwatch(bundle, context)
            after, report = settled._apply(bundle, context)
            notes = [*report.get("notes", []), *timed.pop("notes", [])]
            return after, {**report, "stopwatch": timed, **({"notes": notes} if notes else {})}
        return self._apply(bundle, context)

    def _apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        original, before = bundle, cost_of(bundle.module())
        measure, share = self.goal
        # Without training between them, rounds are steps of one cut.
        cuts = self.rounds if self.between else 1
        rounds: list[dict[str, Any]] = []
        report: dict[str, Any] = {}
        for number in range(1, cuts + 1):
            now = getattr(cost_of(bundle.module()), measure)
            goal = _goal_of_round(number, cuts, share, getattr(before, measure), now)
            bundle, found = self._cut(bundle, context, goal)
            last = number == cuts
            epochs = self.epochs if last else self.between
            if epochs:
                finetune = Finetune(epochs=epochs, learning_rate=self.learning_rate, distill=self.distill)
                folder = context.checkpoints
                if folder is not None and cuts > 1:
                    folder = folder / f"round-{number}"
                    folder.mkdir(exist_ok=True)
                bundle, found["finetune"] = finetune.train(bundle, replace(context, checkpoints=folder), original)
            report = found
            if not last:
                rounds.append(found)
        return bundle, {**_report(before, cost_of(bundle.module())), **report, **({"rounds": rounds} if rounds else {})}

    def _by_the_stopwatch(self, bundle: Bundle, context: Context) -> tuple[PruneChannels, dict[str, Any]]:
        """These settings with the grid and the share of MACs that the clock chose; a killed run keeps its choice."""
        kept = context.checkpoints / "stopwatch.json" if context.checkpoints is not None else None
        if kept is not None and kept.is_file():
            earlier = json.loads(kept.read_text())
            return self._settled(**earlier["settled"]), earlier
        cut_to = self._cutting(bundle, context)
        name, goal = self.goal
        measure = "macs" if name == "latency" else name
        clocks = self.align, parse_goal(self.latency)[1] if self.latency is not None else None
        found: dict[str, Any] = {"settled": {}, "grids": [], "trials": [], "notes": []}
        multiple, share = self.multiple, goal
        watches = {c: Stopwatch(bundle, c, progress=context.progress) for c in clocks if c is not None}
        if self.align is not None:
            multiple, grids = align(watches[self.align], goal, cut_to)
            found |= {"grids": [t.to_dict() for t in grids], "align": self.align}
        if clocks[1] is not None:
            grids_to_try = finer_from(multiple) if self.align is not None else (multiple,)
            multiple, share, trials, given_up = meet_on(grids_to_try, watches[clocks[1]], goal, cut_to)
            found["notes"] += [f"{self.name}: the grid of {grid} was given up: {why}" for grid, why in given_up.items()]
            found |= {"trials": [t.to_dict() for t in trials], "clock": clocks[1], "goal": goal}
        found["settled"] = {"measure": measure, "share": share, "multiple": multiple}
        for clock, measured in zip(clocks, (found["grids"], found["trials"]), strict=True):
            found["notes"] += [f"{self.name}: {doubt}" for doubt in doubts(clock or "", measured)]
        if kept is not None:
            write_json(kept, found)
        return self._settled(measure, share, multiple), found

    def aligned(self, bundle: Bundle, context: Context) -> tuple[int, list[Trial]]:
        """The grid of channels on which the runtime of ``align`` is fastest at this goal, and what was tried."""
        watch = Stopwatch(bundle, str(self.align), progress=context.progress)
        return align(watch, self.goal[1], self._cutting(bundle, context))

    def _cutting(self, bundle: Bundle, context: Context) -> Cut:
        """Cuts to a share on a grid, the weights left as they are: it is for the clock."""
        batches = self.evidence(bundle, context)
        scores = None
        if self.rounds > 1 and not self.between:
            # Every trial ranks anew, round by round.
            batches = list(batches) if batches is not None else None
        else:
            scores = class_scores(analyse(bundle.module(), RULES), self.importance, batches=batches, seed=context.seed)
        name = self.goal[0]
        measure = "macs" if name == "latency" else name

        def cut_to(share: float, multiple: int) -> Bundle | None:
            module = bundle.module()
            try:
                prune(module, self._settled(measure, share, multiple), batches=batches, scores=scores)
            except StepError:
                return None
            return bundle.with_module(module)

        return cut_to

    def _settled(self, measure: str, share: float, multiple: int) -> PruneChannels:
        """These settings with a goal that needs no clock."""
        macs, parameters, size = (share if measure == name else None for name in ("macs", "parameters", "bytes"))
        return replace(
            self, latency=None, align=None, ratio=None, macs=macs, parameters=parameters, size=size, multiple=multiple
        )

    def _cut(self, bundle: Bundle, context: Context, goal: float) -> tuple[Bundle, dict[str, Any]]:
        module = bundle.module()
        batches = self.evidence(bundle, context)
        images = None
        if self.reconstruct and context.data is not None:
            count = images_at_once(module, self.reconstruct)
            images = samples.images(self.name, bundle, context, count)
        flow, refitted = prune(
            module,
            self,
            goal=goal,
            batches=batches,
            images=images,
            seed=context.seed,
            progress=context.progress,
        )
        report: dict[str, Any] = {"barriers": [vars(barrier) for barrier in flow.barriers]}
        if refitted:
            report["refitted"] = [refit.to_dict() for refit in refitted]
        notes = []
        if self.reconstruct and not refitted:
            notes.append("no data was given, so the weights that are left were not fitted to the original's outputs")
        if bundle.few_classes and self.importance not in FROM_DATA:
            notes.append(
                f"importance={self.importance} looks at no images, so the channels were chosen without regard to which classes "
                "are kept; importance=lasso sees them"
            )
        if notes:
            report["notes"] = [f"{self.name}: {note}" for note in notes]
        return bundle.with_module(module), report

    def evidence(self, bundle: Bundle, context: Context) -> Batches | None:
        """Images and labels for the importance, if it looks at any; as many as fit into memory where all are run abreast."""
        if self.importance not in FROM_DATA:
            return None
        count = self.images
        if self.importance in ABREAST:
            count = images_at_once(bundle.module(), count)
        return samples.batches(self.name, bundle, context, count)

    def ensures(self, before: Bundle, after: Bundle) -> None:
        measure, share = self.goal
        if measure == "latency":  # by its trials, which the report tells
            measure, share = "macs", 1.0
        was, now = cost_of(before.module()), cost_of(after.module())
        reached = getattr(now, measure) / getattr(was, measure)
        # Parameters of batch norm are outside the goal's measure, so allow them their part.
        if reached > share + (0.02 if measure == "parameters" else 1e-6):
            raise StepError(f"{reached:.1%} of the {measure} are left, the goal was {share:.1%}")


def prune(
    module: GraphModule,
    settings: PruneChannels,
    *,
    goal: float | None = None,
    batches: Batches | None = None,
    scores: dict[int, float] | None = None,
    images: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Flow, list[Refit]]:
    """Cuts channels of a graph in place, without fine-tuning.

    Where the settings train between their rounds, this is one of them; where they don't, all rounds are done here, each ranked
    by what the one before left, and the weights are refitted once, after the last.

    Args:
        module: The graph.
        settings: The goal, and what ranks channels.
        goal: The share to keep in place of that of the settings.
        batches: Inputs and labels, where data ranks channels.
        scores: The channels' importance, where it is known from an earlier analysis of the same graph; for one round.
        images: Inputs to refit the weights that are left on, shape (n, …); None leaves them.
        seed: Of chance.
        progress: Told how far it has come.

    Returns:
        The analysis of the last round, and the layers that were refitted.

    Raises:
        StepError: If nothing can be cut, or the goal can't be met.
    """
    measure, share = settings.goal
    share = share if goal is None else goal
    floats = duplicate(module) if images is not None else module
    kept: Stays = {}
    rounds = settings.rounds if not settings.between else 1
    if batches is not None and rounds > 1:
        batches = list(batches)  # every round looks at them
    whole = getattr(cost_of(module), measure)
    for number in range(1, rounds + 1):
        if number > 1:
            progress(number - 1, rounds, "choosing channels")
            if not refresh_values(module):
                raise StepError("a size depends on the batch and on channels at once", "Cut it in one round: rounds=1.")
        now = _goal_of_round(number, rounds, share, whole, getattr(cost_of(module), measure))
        flow, removed = choose(module, settings, goal=now, batches=batches, scores=scores, seed=seed)
        if images is not None:
            kept = _kept_of(kept, kept_positions(flow, removed))
        cut(flow, removed)
    if images is None:
        return flow, []
    return flow, reconstruct(floats, module, kept, images, seed=seed, progress=progress)


def _goal_of_round(number: int, rounds: int, share: float, whole: float, left: float) -> float:
    """The share of what is left to keep: the same in each round, and the last one meets the goal exactly."""
    return share if rounds == 1 else min(share ** (number / rounds) * whole / left, 1.0)


def _kept_of(before: Stays, now: Stays) -> Stays:
    """The positions, in what was there before the first round, of what is left after this one."""
    return {name: (dim, before[name][1][stays] if name in before else stays) for name, (dim, stays) in now.items()}


def choose(
    module: GraphModule,
    settings: PruneChannels,
    *,
    goal: float | None = None,
    batches: Batches | None = None,
    scores: dict[int, float] | None = None,
    seed: int = 0,
) -> tuple[Flow, set[int]]:
    """The first half of :func:`prune`: what would be cut; the graph stays as it is.

    Returns:
        The analysis, and the representatives of the classes of channels to cut.

    Raises:
        StepError: If nothing can be cut, or the goal can't be met.
    """
    flow = analyse(module, RULES)
    if scores is None:
        scores = class_scores(flow, settings.importance, batches=batches, seed=seed)
    scores = _but(flow, scores, settings.keep)
    if not scores:
        stops = "; ".join(f"{b.operator} at {b.layer}" for b in flow.barriers[:3])
        raise StepError(
            f"no channel of this network can be cut{f': {stops}' if stops else ''}",
            "Channels that reach the output, an operator without a rule, or a layer that importance="
            f"{settings.importance} can't score, have to stay.",
        )
    measure, share = settings.goal
    costs = weight_costs(module, flow, measure)
    selection = select(
        flow,
        scores,
        costs,
        goal=share if goal is None else goal,
        scope=settings.scope,
        floor=settings.floor,
        multiple=settings.multiple,
    )
    return flow, selection.removed


def _but(flow: Flow, scores: dict[int, float], keep: Sequence[str]) -> dict[int, float]:
    """The scores of the classes of channels that no layer of these names makes."""
    made: dict[str, set[int]] = {}
    for slot in flow.slots:
        if slot.role == "out":
            made.setdefault(layer_name(slot.node), set()).update(flow.roots(slot.ids).tolist())
    stay: set[int] = set()
    for pattern in keep:
        found = fnmatch.filter(made, pattern)
        if not found:
            named = ", ".join(list(made)[:12]) + " …" * (len(made) > 12)
            raise StepError(f"no layer that makes channels is called {pattern!r}", f"The layers are {named}.")
        stay.update(root for name in found for root in made[name])
    return {root: score for root, score in scores.items() if root not in stay}


def weight_costs(module: GraphModule, flow: Flow, measure: str) -> dict[str, float]:
    """For each weight: the MACs it takes part in, or its size; in bytes, every tensor that is stored for the graph.

    In MACs also the products of two tensors, by node, those of fused attention with the keys and the values apart.

    Args:
        module: The graph.
        flow: Its analysis.
        measure: ``macs``, ``parameters`` or ``bytes``.
    """
    if measure == "bytes":
        names = {str(node.target) for node in module.graph.nodes if node.op == "get_attr" and node.users}
        return {name: float(attribute(module, name).nbytes) for name in sorted(names)}
    macs = {layer.name: layer.macs for layer in cost_of(module).layers}
    costs: dict[str, float] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or not macs.get(node.name):
            continue
        if node.target in GATES:
            for name, cost in parameter_costs(node, macs[node.name] if measure == "macs" else None).items():
                costs[name] = cost + (costs.get(name, 0.0) if measure == "macs" else 0.0)
            continue
        weight = node.args[1] if len(node.args) > 1 else None
        name = str(weight.target) if isinstance(weight, torch.fx.Node) and weight.op == "get_attr" else node.name
        if measure == "macs" and node.target is aten.scaled_dot_product_attention.default:
            widths = [shape_of(source)[-1] for source in (node.args[0], node.args[2])]
            for part, width in zip(("keys", "values"), widths, strict=True):
                costs[f"{name}.{part}"] = macs[node.name] * width / sum(widths)
        elif measure == "macs":
            costs[name] = costs.get(name, 0.0) + macs[node.name]
        elif name != node.name:
            costs[name] = float(attribute(module, name).numel())
    return costs


# Over a sequence, these have time in the second dimension.
_CHANNELS_LAST = ("linear", "lstm", "gru", "rnn_tanh", "rnn_relu")


def _report(before: Cost, after: Cost) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for layer in after.layers:
        if layer.macs:
            shapes.setdefault(layer.path or layer.name, []).append(layer.output_shape)
    for layer in before.layers:
        was, dim = layer.output_shape, -1 if layer.op.split(".")[0] in _CHANNELS_LAST else 1
        # A recurrent layer may have become one operator for each of its layers.
        for now in shapes.get(layer.path or layer.name, ()) if layer.macs else ():
            if len(now) == len(was) > 1 and now[dim] != was[dim]:
                row = {"layer": layer.path or layer.name, "channels": was[dim], "kept": now[dim]}
                layers += [row] if row not in layers else []
    return {
        "macs": {"before": before.macs, "after": after.macs, "ratio": after.macs / before.macs},
        "parameters": {
            "before": before.parameters,
            "after": after.parameters,
            "ratio": after.parameters / before.parameters,
        },
        "bytes": {"before": before.bytes, "after": after.bytes, "ratio": after.bytes / before.bytes},
        "layers": layers,
    }

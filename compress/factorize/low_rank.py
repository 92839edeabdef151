"""Low-rank factorization: layers become chains of smaller ones, and the whole is refitted and fine-tuned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress import samples
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.factorize.clock import Clock
from edgekit.compress.factorize.layer import Layer, layers_of
from edgekit.compress.factorize.method import Method, method
from edgekit.compress.factorize.plan import Choice, Menu, Plan, make_choices, menu, sensitivities, whole
from edgekit.compress.factorize.ranks import Measure, by_energy, cost, given, uniform, variational, within
from edgekit.compress.factorize.replace import replace as replace_layer
from edgekit.compress.factorize.statistics import Statistics, measure, seen_by
from edgekit.compress.finetune import Finetune
from edgekit.compress.prune.reconstruct import images_at_once, reconstruct
from edgekit.compress.prune.stopwatch import Stopwatch, doubts, meet, parse_goal, refuse_unknown_clock
from edgekit.compress.rewrite import finish
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.cost import Cost, cost_of
from edgekit.errors import StepError
from edgekit.files import write_json

# CP is not among those that are tried unasked, though it loses least at the same MACs (benches/low_rank.py): it takes thirty
# times as long to find, and ncnn took twice the original's time for half of its MACs.
_AUTO = ("channel", "spatial", "tucker")
# Of a weight: the step asks for float weights.
_FLOAT_BYTES = 4
# Images for sensitivities: they rank layers, no more.
_PROBED = 128


@dataclass(frozen=True)
class _Work:
    """What a plan is made from."""

    bundle: Bundle
    module: GraphModule
    layers: Sequence[Layer]
    found: Statistics | None
    images: np.ndarray | None
    context: Context


@dataclass(frozen=True, kw_only=True)
class Factorize(Step):
    """Replaces convolutions and linear layers by chains of smaller ones.

    Give one goal: ``macs``, ``parameters``, ``size`` or ``latency`` (the share to keep, ranks are allocated over the network),
    or the ranks: ``energy``, ``rank``, ``ranks`` or ``vbmf``. A layer is replaced only where that takes fewer MACs and fewer
    parameters. With data at hand the chains are fitted to what the layers give on images, not to their weights.

    Attributes:
        macs: Share of the multiply-accumulates to keep, between 0 and 1.
        parameters: Share of the parameters to keep, between 0 and 1.
        size: Share of the weights' bytes to keep, between 0 and 1: all that the bundle stores of them, batch norm included.
        latency: Share of the measured latency to keep and the format in whose runtime to measure it, by trials with one
            thread: ``0.5@tflite`` on this machine, ``0.5@tflite@ssh:pi@board`` on that target.
        energy: Share of the variance of its output (of its weight, without data) that every layer keeps.
        rank: Share of its full rank that every layer keeps.
        ranks: ``PATTERN=RANK`` for single layers; the others stay whole.
        vbmf: Ranks above the noise of the weights, by variational Bayes.
        method: A decomposition for convolutions: ``channel`` (fewer filters, then 1×1), ``spatial`` (vertical, then
            horizontal), ``tucker`` (1×1, small kernel, 1×1), ``cp`` (1×1, two depthwise, 1×1), or for each layer the best
            of the first three (``auto``). Linear layers have ``channel``, their SVD.
        allocation: How a budget is divided: by what the network's output suffers (``sensitivity``), by the product of the
            shares of energy that layers keep (``energy``), or the same share for every layer (``uniform``).
        multiple: Ranks are multiples of it.
        images: How many training images the decompositions look at; 0 for the weights alone.
        reconstruct: On how many training images each layer is fitted, in the order of the network, to what it gave in the
            original; 0 leaves them as they are.
        rectified: Fit what the ReLU behind a layer gives, not what it reads.
        stopwatch: A format in whose runtime every chain is timed against its layer alone; one that is not measured to be
            faster is not made. A target may follow, as in ``latency``.
        keep: Name patterns of layers to leave whole.
        epochs: Epochs of fine-tuning afterwards.
        learning_rate: Peak learning rate of the fine-tuning.
        distill: Share of the original network's soft targets in the fine-tuning's loss, 0 to 1, the rest being
            cross-entropy; or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
    """

    name: ClassVar[str] = "factorize"
    summary: ClassVar[str] = "replace layers by low-rank chains of smaller ones, then fine-tune"
    source: ClassVar[str] = (
        "Jaderberg et al., BMVC 2014 (spatial); Zhang et al., TPAMI 2016 (channel, ReLU, allocation); Kim et al., ICLR "
        "2016 (Tucker-2); Lebedev et al., ICLR 2015 (CP); Nakajima et al., JMLR 2013 (variational Bayes)"
    )
    example: ClassVar[str] = "macs=0.6,images=64,reconstruct=64,multiple=2,epochs=1"

    macs: float | None = None
    parameters: float | None = None
    size: float | None = None
    latency: str | None = None
    energy: float | None = None
    rank: float | None = None
    ranks: tuple[str, ...] = ()
    vbmf: bool = False
    method: Literal["auto", "channel", "spatial", "tucker", "cp"] = "auto"
    allocation: Literal["sensitivity", "energy", "uniform"] = "sensitivity"
    multiple: int = 4
    images: int = 512
    reconstruct: int = 512
    rectified: bool = False
    stopwatch: str | None = None
    keep: tuple[str, ...] = ()
    epochs: int = 5
    learning_rate: float = 0.01
    distill: Distillation | float = 0.0

    def __post_init__(self) -> None:
        timed = parse_goal(self.latency) if self.latency is not None else (None, "")
        shares = {
            "macs": self.macs,
            "parameters": self.parameters,
            "size": self.size,
            "latency": timed[0],
            "energy": self.energy,
            "rank": self.rank,
        }
        if sum(value is not None for value in shares.values()) + bool(self.ranks) + self.vbmf != 1:
            raise ValueError(
                "give exactly one of macs, parameters, size, latency, energy, rank, ranks and vbmf, for example macs=0.5"
            )
        for name, value in shares.items():
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {value:g}")
        for clock in (timed[1], self.stopwatch):
            if clock:
                refuse_unknown_clock(clock)
        for text in self.ranks:
            pattern, _, number = text.rpartition("=")
            if not pattern or not number.isdigit() or int(number) < 1:
                raise ValueError(f"ranks are PATTERN=RANK, such as conv1=8, not {text!r}")
        if self.vbmf and self.method == "cp":
            raise ValueError("variational Bayes finds the rank of matrices; a CP decomposition has none")
        for name, least in (("multiple", 1), ("images", 0), ("reconstruct", 0), ("epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        distillation(self.distill)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        if self.epochs:
            context.dataset(self.name)  # ask for it before the work, not after
        module = bundle.module()
        layers = layers_of(module, self.keep)
        if not layers:
            raise StepError(
                "no layer of this network can be factorized", "Grouped and shared weights stay as they are."
            )
        images = self._images(bundle, context, self.images)
        found = (
            measure(module, layers, images, seed=context.seed, progress=context.progress)
            if images is not None
            else None
        )
        plan, timed = self._plan(_Work(bundle, module, layers, found, images, context))
        notes = []
        if "stopwatch" in timed:
            clocked = timed["stopwatch"]
            notes = [f"{self.name}: {doubt}" for doubt in doubts(clocked["clock"], clocked["trials"])]
        if all(choice.method is None for choice in plan.values()):
            raise StepError(
                "no chain pays at these ranks: each would take as many MACs or parameters as the layer", "Ask for less."
            )
        before = cost_of(bundle.module())
        factorized = _replaced(module, plan, found)
        report: dict[str, Any] = {"layers": [choice.to_dict() for choice in plan.values()], **timed}
        images = self._images(bundle, context, self.reconstruct)
        if images is not None:
            refitted = reconstruct(
                bundle.module(), factorized, {}, images,
                rectified=self.rectified, seed=context.seed, progress=context.progress,
            )  # fmt: skip
            report["refitted"] = [refit.to_dict() for refit in refitted]
        elif context.data is None and (self.reconstruct or self.images):
            notes.append(f"{self.name}: no data was given, so the chains were fitted to the weights alone")
        if notes:
            report["notes"] = notes
        after = bundle.with_module(factorized)
        report = {**_totals(before, cost_of(after.module())), **report}
        if self.epochs:
            finetune = Finetune(epochs=self.epochs, learning_rate=self.learning_rate, distill=self.distill)
            after, report["finetune"] = finetune.train(after, context, bundle)
        return after, report

    def _images(self, bundle: Bundle, context: Context, count: int) -> np.ndarray | None:
        if not count or context.data is None:
            return None
        return samples.images(self.name, bundle, context, images_at_once(bundle.module(), count))

    def _methods_for(self, layer: Layer) -> list[Method]:
        """What may be used; linear and pointwise layers have no other than the SVD."""
        methods = [method(name) for name in (_AUTO if self.method == "auto" else (self.method,))]
        return [m for m in methods if m.fits(layer)] or [method("channel")]

    def _plan(self, work: _Work) -> tuple[Plan, dict[str, Any]]:
        """What each layer becomes; a killed run keeps its plan."""
        folder = work.context.checkpoints
        kept = folder / "plan.json" if folder is not None else None
        if kept is not None and kept.is_file():
            earlier = json.loads(kept.read_text())
            by_node = {layer.node: layer for layer in work.layers}
            resumed: dict[str, Choice] = {}
            for node, (name, rank) in earlier["plan"].items():
                layer = by_node[node]
                covariance = seen_by(layer, work.found).covariance
                resumed[node] = (
                    make_choices(work.module, layer, method(name), [rank], covariance)[0] if name else whole(layer)
                )
            return resumed, earlier["timed"]
        plan, timed = self._new_plan(work)
        if kept is not None:
            chosen = {node: (c.method.name if c.method else None, c.rank) for node, c in plan.items()}
            write_json(kept, {"plan": chosen, "timed": timed})
        return plan, timed

    def _new_plan(self, work: _Work) -> tuple[Plan, dict[str, Any]]:
        module, layers, found, context = work.module, work.layers, work.found, work.context
        if self.vbmf or self.rank is not None or self.ranks:
            plan = (
                variational(module, layers, self._methods_for, found)
                if self.vbmf
                else given(
                    module, layers, self._methods_for, found, share=self.rank, ranks=self.ranks, multiple=self.multiple
                )
            )
            choices = {node: [*([c] if c.method else []), whole(c.layer)] for node, c in plan.items()}
            return self._faster(choices, lambda left: ({node: c[0] for node, c in left.items()}, {}), context)
        choices = dict(
            menu(module, layers, self._methods_for, found, multiple=self.multiple, progress=context.progress)
        )
        if self.energy is not None:
            energy = self.energy
            return self._faster(choices, lambda left: (by_energy(left, energy), {}), context)
        weights = None
        if self.allocation == "sensitivity" and work.images is not None:
            weights = sensitivities(module, choices, found, work.images[:_PROBED], progress=context.progress)
        return self._faster(choices, lambda left: self._divide(work, left, weights), context)

    def _faster(
        self, choices: dict[str, list[Choice]], divide: Callable[[Menu], tuple[Plan, dict[str, Any]]], context: Context
    ) -> tuple[Plan, dict[str, Any]]:
        """A division of the choices in which every chain is faster than its layer, if that was asked for."""
        plan, timed = divide(choices)
        if self.stopwatch is None:
            return plan, timed
        clock, left_out = Clock(self.stopwatch, context.progress), []
        while slow := clock.not_faster(plan):
            for node, ratio in slow.items():
                bad = plan[node]
                left_out.append({**bad.to_dict(), "time": ratio})
                choices[node] = [c for c in choices[node] if c.method is None or not _no_smaller(c, bad)]
            plan, timed = divide(choices)
        return plan, {**timed, "not_faster": left_out}

    def _divide(self, work: _Work, choices: Menu, weights: Mapping[str, float] | None) -> tuple[Plan, dict[str, Any]]:
        """The budget over the choices; for a goal in latency the largest budget of MACs that meets it."""
        totals = cost_of(work.module)

        def plan_for(share: float, limited: Measure) -> Plan:
            others = getattr(totals, limited) - cost({node: options[-1] for node, options in choices.items()}, limited)
            budget = share * getattr(totals, limited) - others
            if self.allocation == "uniform":
                return uniform(choices, limited, budget)
            return within(choices, limited, budget, weights)

        if self.macs is not None:
            return plan_for(self.macs, "macs"), {}
        if self.size is not None:
            # Chains are stored as what they replace was, so all that is to go goes in elements of weights.
            gone = (1 - self.size) * totals.bytes / _FLOAT_BYTES
            return plan_for(1 - gone / totals.parameters, "parameters"), {}
        if self.latency is None:
            return plan_for(float(self.parameters or 0), "parameters"), {}
        goal, clock = parse_goal(self.latency)

        def cut_to(share: float, multiple: int) -> Bundle | None:
            try:
                plan = plan_for(share, "macs")
            except StepError:
                return None
            return work.bundle.with_module(_replaced(work.bundle.module(), plan, work.found))

        share, trials = meet(Stopwatch(work.bundle, clock, progress=work.context.progress), goal, self.multiple, cut_to)
        settled = {"measure": "macs", "share": share, "multiple": self.multiple}
        timed = {"settled": settled, "clock": clock, "goal": goal, "trials": [t.to_dict() for t in trials]}
        return plan_for(share, "macs"), {"stopwatch": timed}

    def ensures(self, before: Bundle, after: Bundle) -> None:
        costs = [cost_of(bundle.module()) for bundle in (before, after)]
        for name, share in (("macs", self.macs), ("parameters", self.parameters), ("bytes", self.size)):
            was, now = (getattr(cost, name) for cost in costs)
            if now >= was or (share is not None and now > share * was + 1e-6 * was):
                raise StepError(f"{now / was:.1%} of the {name} are left, the goal was {share or 1:.1%}")


def _no_smaller(choice: Choice, other: Choice) -> bool:
    """Whether it is a chain of the same kind, and of the same rank or more."""
    return (
        choice.method is not None
        and other.method is not None
        and choice.method.name == other.method.name
        and choice.rank >= other.rank
    )


def _replaced(module: GraphModule, plan: Plan, found: Statistics | None) -> GraphModule:
    """The graph with the chains of a plan; it is changed in place."""
    for choice in plan.values():
        if choice.method is not None:
            replace_layer(module, choice.layer, choice.method, choice.rank, seen_by(choice.layer, found))
    finish(module)
    return module


def _totals(before: Cost, after: Cost) -> dict[str, Any]:
    return {
        name: {
            "before": getattr(before, name),
            "after": getattr(after, name),
            "ratio": getattr(after, name) / getattr(before, name),
        }
        for name in ("macs", "parameters", "bytes")
    }

"""A student made from its teacher: a smaller network out of the teacher's graph, to a goal, that learns from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from edgekit.bundle import Bundle
from edgekit.compress.compact.assemble import TOLERANCE, WAYS, Parts, Student, Way, assemble, mixes
from edgekit.compress.compact.blocks import find_blocks
from edgekit.compress.compact.depth import Removal, removal_order
from edgekit.compress.compact.judge import Judge
from edgekit.compress.compact.latency import aims
from edgekit.compress.compact.replacement import KINDS, Kind, Measure, Offer, offers
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.finetune import Finetune
from edgekit.compress.prune.channels import PruneChannels
from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.importance import Importance
from edgekit.compress.prune.reconstruct import images_at_once
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.stopwatch import Stopwatch, doubts, parse_goal, refuse_unknown_clock
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.cost import cost_of
from edgekit.data.dataset import to_inputs
from edgekit.errors import StepError
from edgekit.files import write_json

# Images of the validation split to judge candidates by.
_JUDGED = 1000
# Images at a time where blocks are ranked, and how many of those that weights are fitted on.
_BATCH, _RANKED = 64, 256
# Small, so that the short trial takes steps enough for batch norm's running statistics to follow the weights.
_TRIAL_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class MakeStudent(Step):
    """Builds a smaller network out of the teacher's own graph, begun from its weights, and distils the teacher into it.

    Give one goal: ``macs``, ``parameters``, ``size`` or ``latency`` (the share to keep). The ways down are to take blocks
    out, to write convolutions as cheaper ones, and to cut channels; each by itself and every mix of them is a candidate. Each
    candidate is brought to the goal, its weights are fitted to what the teacher's layers give, and it learns from the teacher
    for a short while. The one whose outputs on validation images are nearest to the teacher's is trained.

    Attributes:
        macs: Share of the multiply-accumulates to keep, between 0 and 1.
        parameters: Share of the parameters to keep, between 0 and 1.
        size: Share of the weights' bytes to keep, between 0 and 1: all that the bundle stores of them, batch norm included.
        latency: Share of the measured latency to keep and the format in whose runtime to measure it, by trials with one
            thread: ``0.5@tflite`` on this machine, ``0.5@tflite@ssh:pi@board`` on that target.
        ways: What may be done: ``depth`` (blocks are taken out), ``replace`` (convolutions are written as cheaper ones),
            ``width`` (channels are cut).
        kinds: What ``replace`` may write: ``separable`` (depthwise and pointwise), ``two-3x3`` (for 5×5) and ``spatial`` (a
            column and a row, for 5×5 and larger).
        multiplier: Depthwise filters for each input channel in ``separable``.
        importance: What ranks channels, as in ``prune-channels``.
        scope: Rank all channels together, or cut the same share everywhere.
        floor: Share of its channels that every layer keeps.
        multiple: Cut a multiple of so many channels of the same layers at a time.
        align: A format in whose runtime the multiples 1 to 32 are tried; the fastest takes the place of ``multiple``. A target
            may follow, as in ``latency``.
        images: Training images to fit weights on, and to rank blocks and channels by.
        trial: Training images from which each candidate learns before they are compared; 0 compares them as fitted.
        epochs: Epochs of training of the chosen one; 0 leaves it as fitted.
        learning_rate: Peak learning rate.
        distill: Weight of the teacher's soft targets in the loss, 0 to 1; or the settings of the step ``distill``, in which
            ``before`` is the network that the student is made from: ``distill=[method=hints]``.
    """

    name: ClassVar[str] = "student"
    summary: ClassVar[str] = "build a smaller network out of the teacher's graph, and distil the teacher into it"
    source: ClassVar[str] = (
        "Hinton et al., arXiv:1503.02531 (distillation); Tan & Le, ICML 2019 (mixing depth and width); Guo et al., BMVC 2018 "
        "(network decoupling); Jaderberg et al., BMVC 2014 (columns and rows); Szegedy et al., CVPR 2016 (two 3×3); He et "
        "al., ICCV 2017 (refitting)"
    )
    example: ClassVar[str] = "macs=0.5,ways=[depth,replace],images=64,trial=0,epochs=1"

    macs: float | None = None
    parameters: float | None = None
    size: float | None = None
    latency: str | None = None
    ways: tuple[Way, ...] = WAYS
    kinds: tuple[Kind, ...] = tuple(KINDS)
    multiplier: int = 1
    importance: Importance = "l2"
    scope: Literal["global", "layer"] = "global"
    floor: float = 0.1
    multiple: int = 8
    align: str | None = None
    images: int = 512
    trial: int = 2048
    epochs: int = 10
    learning_rate: float = 0.02
    distill: Distillation | float = 0.7

    def __post_init__(self) -> None:
        timed = parse_goal(self.latency)[0] if self.latency is not None else None
        goals = [goal for goal in (self.macs, self.parameters, self.size, timed) if goal is not None]
        if len(goals) != 1:
            raise ValueError("give exactly one goal: macs, parameters, size or latency, for example macs=0.5")
        if not 0 < goals[0] < 1:
            raise ValueError(f"a goal is a share between 0 and 1, not {goals[0]:g}")
        for clock in (self.align, parse_goal(self.latency)[1] if self.latency is not None else None):
            if clock is not None:
                refuse_unknown_clock(clock)
        if not self.ways:
            raise ValueError(f"ways needs one at least of {', '.join(WAYS)}")
        for name, least in (("multiplier", 1), ("images", 1), ("multiple", 1), ("trial", 0), ("epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share between 0 and 1, not {self.floor:g}")
        distillation(self.distill)

    @property
    def goal(self) -> tuple[Measure, float]:
        """What is limited and the share to keep; a goal in latency begins as one in multiply-accumulates."""
        if self.latency is not None:
            return "macs", parse_goal(self.latency)[0]
        if self.size is not None:
            return "bytes", self.size
        return ("parameters", self.parameters) if self.parameters is not None else ("macs", float(self.macs or 0))

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        context.dataset(self.name)  # ask for it before the work, not after
        kept = context.checkpoints / "student.json" if context.checkpoints is not None else None
        found: dict[str, Any] = {}
        if kept is not None and kept.is_file():
            found = json.loads(kept.read_text())
        if self.align is not None and "width" in self.ways:
            if "multiple" not in found:
                found["multiple"], grids = self._pruning(align=self.align).aligned(bundle, context)
                found |= {"grids": [trial.to_dict() for trial in grids], "align": self.align}
                _keep(kept, found)
            settled = replace(self, align=None, multiple=found["multiple"])
            after, report = settled._made(bundle, context, kept, found)
            return after, {**report, "align": self.align, "multiple": found["multiple"], "grids": found["grids"]}
        return self._made(bundle, context, kept, found)

    def _made(
        self, bundle: Bundle, context: Context, kept: Path | None, found: dict[str, Any]
    ) -> tuple[Bundle, dict[str, Any]]:
        """The student on a grid that is settled."""
        data = context.dataset(self.name)
        parts, alone = self._parts(bundle, context)
        usable = [way for way in self.ways if not (way in alone and "*" in alone[way])]
        if not usable:
            raise StepError(
                f"this network can't be made smaller by {' or '.join(self.ways)}: {'; '.join(a['*'] for a in alone.values())}",
                "Allow other ways, for example ways=[width].",
            )
        best: tuple[str, Bundle] | None = None
        if "candidates" not in found:
            found["shares"], found["candidates"] = self._shares(parts, usable, context)
            _keep(kept, found)
        judge = Judge(bundle, data.validation, _JUDGED)
        for number, (key, share) in enumerate(found["shares"].items()):
            if key in found["candidates"] and "fitted" in found["candidates"][key]:
                continue
            context.progress(number, len(found["shares"]), f"student: {key}")
            found["candidates"].setdefault(key, {})
            try:
                student = assemble(parts, _mix(key), share, self.goal[0], fit=True)
                if student.mix != _mix(key) and "+".join(student.mix) in found["shares"]:
                    raise StepError(f"it comes to {' and '.join(student.mix)} alone")
            except StepError as error:
                found["candidates"][key]["impossible"] = error.what
                continue
            made = bundle.with_module(student.module)
            found["candidates"][key] |= self._tried(student, made, judge, parts, context)
            _keep(kept, found)
            if self._chosen(found["candidates"]) == key:
                best = key, made
        chosen = self._chosen(found["candidates"])
        if best is None or best[0] != chosen:  # an earlier run found it
            student = assemble(parts, _mix(chosen), found["shares"][chosen], self.goal[0], fit=True)
            best = chosen, bundle.with_module(student.module)
        after = best[1]
        report: dict[str, Any] = {"teacher": _figures(judge)}
        if self.epochs:
            finetune = Finetune(epochs=self.epochs, learning_rate=self.learning_rate, distill=self.distill)
            after, report["finetune"] = finetune.train(after, context, teacher=bundle)
        was, now = figures_of(bundle), figures_of(after)
        if notes := self._doubts(found):
            report["notes"] = notes
        return after, {
            **{name: {"before": was[name], "after": now[name], "ratio": now[name] / was[name]} for name in was},
            "chosen": chosen,
            "candidates": found["candidates"],
            "left_alone": alone,
            "barriers": [vars(barrier) for barrier in analyse(bundle.module(), RULES).barriers],
            **report,
        }

    def _doubts(self, found: dict[str, Any]) -> list[str]:
        """What to say of the clock, in the runtimes that were asked."""
        notes = doubts(found["align"], found["grids"]) if "grids" in found else []
        if self.latency is not None:
            trials = [trial for row in found["candidates"].values() for trial in row.get("trials", ())]
            notes += doubts(parse_goal(self.latency)[1], trials)
        return [f"{self.name}: {note}" for note in notes]

    def _parts(self, bundle: Bundle, context: Context) -> tuple[Parts, dict[str, dict[str, str]]]:
        """What students are made from, and what is left alone for each way, with the reason (``*``: all of it)."""
        module = bundle.module()
        measure, pruning = self.goal[0], self._pruning()
        train = context.dataset(self.name).train
        count = images_at_once(module, self.images)
        images = to_inputs(train.images(train.spread(count)), bundle.preprocessing)
        alone: dict[str, dict[str, str]] = {}
        removals: list[Removal] = []
        offered: list[Offer] = []
        if "depth" in self.ways:
            blocks = find_blocks(module)
            ranked = torch.from_numpy(images[:: max(1, len(images) // _RANKED)]).split(_BATCH)
            removals = removal_order(module, blocks, ranked, measure, context.progress)
            if not blocks:
                alone["depth"] = {"*": "no part of it takes and gives values of the same shape by which all goes"}
        if "replace" in self.ways:
            offered, alone["replace"] = offers(module, self.kinds, multiplier=self.multiplier)
            if not offered:
                alone["replace"]["*"] = "no convolution has a cheaper form"
        batches = pruning.evidence(bundle, context) if "width" in self.ways else None
        listed = list(batches) if batches is not None else None
        return Parts(
            teacher=bundle, blocks=removals, offers=offered, pruning=pruning, batches=listed, images=images,
            seed=context.seed,
        ), alone  # fmt: skip

    def _pruning(self, align: str | None = None) -> PruneChannels:
        measure, share = self.goal
        return PruneChannels(
            macs=share if measure == "macs" else None,
            parameters=share if measure == "parameters" else None,
            size=share if measure == "bytes" else None,
            importance=self.importance,
            images=self.images,
            scope=self.scope,
            floor=self.floor,
            multiple=self.multiple,
            align=align,
            epochs=0,
        )

    def _shares(
        self, parts: Parts, ways: Sequence[Way], context: Context
    ) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """The share of the measure that each mix goes down to, and what the stopwatch said about it."""
        listed = mixes(ways)
        goal = self.goal[1]
        if self.latency is None:
            return {"+".join(mix): goal for mix in listed}, {}
        watch = Stopwatch(parts.teacher, parse_goal(self.latency)[1], progress=context.progress)
        shares: dict[str, float] = {}
        rows: dict[str, dict[str, Any]] = {}
        for mix, aim in aims(parts, listed, goal, watch, self.multiple).items():
            key, best = "+".join(mix), aim.best()
            rows[key] = {"trials": [trial.to_dict() for trial in aim.trials]}
            if best is None:
                tried = ", ".join(f"{t.ratio:.2f} with {t.macs:.0%} of the MACs" for t in aim.trials)
                rows[key]["impossible"] = f"the latency was not reached ({tried or 'it does not go so far down'})"
            else:
                shares[key] = best.macs
                rows[key]["latency"] = {"ratio": best.ratio, "low": best.low, "high": best.high}
        return shares, rows

    def _tried(self, student: Student, made: Bundle, judge: Judge, parts: Parts, context: Context) -> dict[str, Any]:
        """What a candidate is, and how near it comes."""
        whole = cost_of(parts.teacher.module())
        row: dict[str, Any] = {
            "macs": student.cost.macs / whole.macs,
            "parameters": student.cost.parameters / whole.parameters,
            "bytes": student.cost.bytes / whole.bytes,
            **student.to_dict(),
        }
        row["fitted"] = judge(made.module()).to_dict()
        if self.trial:
            data = context.dataset(self.name)
            positions = np.random.default_rng(context.seed).permutation(len(data.train))[: self.trial]
            # Its own validation is not looked at: the judge's images decide.
            few = replace(
                data, train=data.train.part(np.sort(positions)), validation=data.validation.part(np.arange(1))
            )
            # In proportion to the batch (Goyal et al., arXiv:1706.02677, section 2.1).
            rate = self.learning_rate * _TRIAL_BATCH / Finetune().batch_size
            short = Finetune(epochs=1, batch_size=_TRIAL_BATCH, learning_rate=rate, distill=self.distill, keep="last")
            taught, _ = short.train(made, replace(context, data=few, checkpoints=None), teacher=parts.teacher)
            row["trial"] = judge(taught.module()).to_dict()
        return row

    @staticmethod
    def _chosen(candidates: dict[str, dict[str, Any]]) -> str:
        possible = {key: row.get("trial", row["fitted"]) for key, row in candidates.items() if "fitted" in row}
        if not possible:
            reasons = "; ".join(f"{key}: {row['impossible']}" for key, row in candidates.items())
            raise StepError(f"no student meets the goal ({reasons})", "Ask for less, or allow more ways.")
        return min(possible, key=lambda key: possible[key]["divergence"])

    def ensures(self, before: Bundle, after: Bundle) -> None:
        if self.latency is not None:  # by its trials, which the report tells
            return
        measure, share = self.goal
        reached = figures_of(after)[measure] / figures_of(before)[measure]
        if reached > share + TOLERANCE[measure]:
            raise StepError(f"{reached:.1%} of the {measure} are left, the goal was {share:.1%}")


def figures_of(bundle: Bundle) -> dict[str, int]:
    """The figures that a report compares."""
    cost = cost_of(bundle.module())
    return {"macs": cost.macs, "parameters": cost.parameters, "bytes": cost.bytes}


def _mix(key: str) -> tuple[Way, ...]:
    return tuple(way for way in WAYS if way in key.split("+"))


def _keep(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        write_json(path, found)


def _figures(judge: Judge) -> dict[str, Any]:
    return {"top1": judge.teacher.top1, "images": len(judge.teacher.labels)}

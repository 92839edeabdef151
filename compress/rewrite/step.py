"""The exact rewrites as a step of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.prune.stopwatch import Stopwatch, doubts, refuse_unknown_clock
from edgekit.compress.rewrite.batch_norm import fold_batch_norm
from edgekit.compress.rewrite.branches import merge_branches
from edgekit.compress.rewrite.identities import remove_dead_code, remove_dropout, remove_identities
from edgekit.compress.rewrite.sequences import merge_sequences
from edgekit.compress.rewrite.siblings import merge_siblings
from edgekit.compress.rewrite.splits import hoist_over_splits, remove_splits_before_concatenation
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError
from edgekit.files import write_json

# Rounding of float32 through some tens of layers, against the largest output; a wrong rewrite is far beyond it.
_TOLERANCE = 1e-3
# A network with weights of chance may magnify rounding more: then against what rounding does to the original itself.
# Folding rounds every weight once, which weighs some ten times as much as one sum (MobileNet V3 with random weights).
_TIMES_OWN_ROUNDING = 100


@dataclass(frozen=True, kw_only=True)
class Rewrite(Step):
    """Rewrites the program into one with fewer operators that computes the same, to float rounding.

    The result trains, prunes and quantizes like any other; with ``batch_norm=false`` batch norms stay for that. Merged
    siblings share one scale when they are quantized.

    Attributes:
        batch_norm: Fold batch norms into the layers before them. Exports do that by themselves.
        identities: Take out dropout, operators that hand their input on, and what the output does not depend on.
        branches: Merge parallel convolutions (and the identity) that are added, as RepVGG's.
        sequences: Merge two linear layers in a row where one costs less.
        siblings: Merge layers that read the same input into one wider layer and a split.
        pays: A format in whose runtime merged siblings are measured, with one thread, on this machine or a target
            (``tflite@ssh:pi@board``): they stay apart where merging is not faster. The split costs a copy in some runtimes.
    """

    name: ClassVar[str] = "rewrite"
    summary: ClassVar[str] = "merge sibling layers and parallel branches, fold batch norm, take out what does nothing"
    source: ClassVar[str] = (
        "NVIDIA TensorRT, Developer Guide (horizontal fusion); Ding et al., CVPR 2021 (RepVGG); Jacob et al., CVPR 2018 "
        "(batch norm)"
    )
    example: ClassVar[str] = ""

    batch_norm: bool = True
    identities: bool = True
    branches: bool = True
    sequences: bool = True
    siblings: bool = True
    pays: str | None = None

    def __post_init__(self) -> None:
        if self.pays is not None:
            refuse_unknown_clock(self.pays)
            if not self.siblings:
                raise ValueError("pays decides on merged siblings; leave siblings=false out")

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        module = bundle.module()
        report: dict[str, Any] = {"operators": {"before": _operators(module)}}
        report |= self._alone(module)
        apart = bundle.with_module(module) if self.pays is not None else bundle
        if self.siblings:
            report["siblings"] = merge_siblings(module)
            report["hoisted"] = hoist_over_splits(module)
            report["splits_removed"] = remove_splits_before_concatenation(module)
            if self.pays is not None and report["siblings"]:
                report["pays"] = self._measured(apart, bundle.with_module(module), self.pays, context)
                if not report["pays"]["merged"]:
                    module = apart.module()
                    report |= {"siblings": [], "hoisted": 0, "splits_removed": 0}
        after = bundle.with_module(module)
        report["operators"]["after"] = _operators(after.module())
        report["max_abs_difference"], report["largest_output"] = _difference(bundle, after)
        unsure = doubts(str(self.pays), [report["pays"]]) if "pays" in report else []
        report["notes"] = [self._told(report), *(f"{self.name}: {doubt}" for doubt in unsure)]
        return after, report

    def _alone(self, module: GraphModule) -> dict[str, Any]:
        """The rewrites that save work in every runtime."""
        report: dict[str, Any] = {}
        if self.identities:
            report["dead"] = remove_dead_code(module)
            report["dropout"] = remove_dropout(module)
            report["identities"] = remove_identities(module)
        if self.branches:
            # Before the batch norms are folded: that of an identity branch has no layer before it.
            report["branches"] = merge_branches(module)
        if self.batch_norm:
            report["batch_norms_folded"] = fold_batch_norm(module)
        if self.sequences:
            report["sequences"] = merge_sequences(module)
        return report

    def _measured(self, apart: Bundle, merged: Bundle, where: str, context: Context) -> dict[str, Any]:
        """Whether merged siblings are faster; a killed run keeps what it measured."""
        kept = context.checkpoints / "pays.json" if context.checkpoints is not None else None
        if kept is not None and kept.is_file():
            earlier: dict[str, Any] = json.loads(kept.read_text())
            return earlier
        watch = Stopwatch(apart, where, progress=context.progress)
        (compared,) = watch.ratios([merged])
        found = {
            "runtime": watch.place,
            "ratio": compared.ratio,
            "low": compared.low,
            "high": compared.high,
            "merged": compared.high < 1,
        }
        if kept is not None:
            write_json(kept, found)
        return found

    def _told(self, report: dict[str, Any]) -> str:
        """One line of what was done."""
        counts = {
            "batch norms folded": report.get("batch_norms_folded", 0),
            "groups of siblings merged": len(report.get("siblings", ())),
            "groups of branches merged": len(report.get("branches", ())),
            "sequences merged": len(report.get("sequences", ())),
            "identities removed": report.get("dropout", 0) + report.get("identities", 0) + report.get("dead", 0),
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to rewrite was found"
        text = f"{self.name}: {told}; operators {report['operators']['before']} → {report['operators']['after']}"
        if "pays" in report:
            pays = report["pays"]
            verdict = "they are merged" if pays["merged"] else "they stay apart"
            text += (
                f"; merged siblings take {pays['ratio']:.2f} [{pays['low']:.2f}, {pays['high']:.2f}] of the time in "
                f"{pays['runtime']}: {verdict}"
            )
        return text

    def ensures(self, before: Bundle, after: Bundle) -> None:
        difference, largest = _difference(before, after)
        if difference <= _TOLERANCE * largest or difference <= _TIMES_OWN_ROUNDING * _own_rounding(before):
            return
        raise StepError(
            f"the rewritten network differs by {difference:.2g} where the largest output is {largest:.2g}",
            "This is a bug of edgekit. Find the rewrite by switching them off one by one, such as siblings=false.",
        )


def _operators(module: GraphModule) -> int:
    """How many there are; picking one of several results is none."""
    return sum(hasattr(node.target, "_schema") for node in module.graph.nodes)


def _difference(before: Bundle, after: Bundle) -> tuple[float, float]:
    """The largest difference of two networks' outputs, and the largest output."""
    x = _inputs(before)
    with torch.no_grad():
        a, b = (bundle.module()(x) for bundle in (before, after))
    return float((a - b).abs().max()), float(a.abs().max())


def _own_rounding(bundle: Bundle) -> float:
    """How far a network's outputs in float32 are from those in float64."""
    x = _inputs(bundle)
    with torch.no_grad():
        return float((bundle.module()(x) - bundle.module().double()(x.double())).abs().max())


def _inputs(bundle: Bundle) -> torch.Tensor:
    """Some samples, or random numbers where there are none."""
    if bundle.samples is not None:
        return torch.from_numpy(bundle.samples.inputs[:4])
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, *bundle.input_shape), dtype=np.float32))

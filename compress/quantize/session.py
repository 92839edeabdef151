"""One quantization of one network: calibrate, choose bits, round, correct. As often as accuracy control asks for it."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.bundle import Bundle
from edgekit.compress.prune.sparse import expand_sparse
from edgekit.compress.quantize.adaround import adaround
from edgekit.compress.quantize.allocation import choose_bits
from edgekit.compress.quantize.bias import round_biases
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import Plan, insert, make_plan
from edgekit.compress.quantize.scheme import FLOAT_BITS, AffineParameters
from edgekit.compress.quantize.sensitivity import SUSPECT_DB, alone
from edgekit.compress.quantize.side_by_side import LayerNoise, compare
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.compress.step import Context
from edgekit.cost import cost_of
from edgekit.data.dataset import to_inputs
from edgekit.errors import StepError
from edgekit.evaluation import sqnr
from edgekit.program import attribute, duplicate, layer_name, shape_of
from edgekit.simulation import simulator

if TYPE_CHECKING:
    from edgekit.compress.quantize.static import Quantize

# Means and noise are taken of so many images at most, and of fewer where one activation of all of them is larger than this.
_FEW, _FEW_ELEMENTS = 128, 2**24
# So far below the whole, the channels of a layer are uneven: a few of large range set the scale.
_UNEVEN_DB = 6.0
# A batch whose largest activation stays in the cache: with a larger one, convolutions wait for memory.
_CACHED_ELEMENTS = 5 * 2**20
# Stands for no difference at all: float32 itself has some 150 dB.
_EXACT_DB = 200.0
# What the budget may choose from.
BUDGET_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Choice:
    """What is quantized how.

    Attributes:
        keep_float: Layers that stay in float, by name or pattern.
        bits: Of weights, by the name of the layer.
    """

    keep_float: tuple[str, ...] = ()
    bits: Mapping[str, int] = field(default_factory=dict)


class Session:
    """The float network in its deployed form, with the images that it is calibrated on."""

    def __init__(self, bundle: Bundle, settings: Quantize, context: Context) -> None:
        self.bundle, self.settings, self.context = bundle, settings, context
        self.dataset = context.dataset(settings.name)
        self.floats = bundle.module()
        expand_sparse(self.floats)
        remove_dropout(self.floats)
        self.folded = fold_batch_norm(self.floats)
        self._plans: dict[tuple[str, ...], tuple[Plan, dict[Node, AffineParameters]]] = {}
        self.layers = [layer_name(node) for node in make_plan(self.floats).compute]
        if not self.layers:
            raise StepError("there is no convolution or linear layer to quantize")
        for pattern in (*settings.keep_float, *(text.partition("=")[0] for text in settings.layer_bits)):
            if not fnmatch.filter(self.layers, pattern):
                named = ", ".join(self.layers[:12]) + " …" * (len(self.layers) > 12)
                raise StepError(f"no layer is called {pattern!r}", f"The layers are {named}.")
        tensors = [
            n for n in self.floats.graph.nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)
        ]
        largest = max(math.prod(shape_of(node)[1:]) for node in tensors)
        self.batch_size = max(1, min(settings.batch_size, _CACHED_ELEMENTS // largest))
        count = max(8, min(_FEW, _FEW_ELEMENTS // largest))
        needed = math.ceil(count / self.batch_size)
        self.few = np.concatenate(list(itertools.islice(self.batches(quiet=True), needed)))[:count]

    def batches(self, *, quiet: bool = False) -> Iterator[np.ndarray]:
        """The calibration images, a batch at a time. Drawn at random: many sets are stored class after class."""
        settings, train = self.settings, self.dataset.train
        chosen = np.random.default_rng(self.context.seed).permutation(len(train))[: settings.images]
        for start in range(0, len(chosen), self.batch_size):
            part = np.sort(chosen[start : start + self.batch_size])
            yield to_inputs(train.images(part), self.bundle.preprocessing)
            if not quiet:
                self.context.progress(start + len(part), len(chosen), "calibrating")

    def first_choice(self) -> Choice:
        """What the settings ask for."""
        settings = self.settings
        bits = dict.fromkeys(self.layers, settings.weight_bits)
        if settings.size is not None or settings.bit_operations is not None:
            bits = self.bits_within()
        for text in settings.layer_bits:
            pattern, _, number = text.partition("=")
            bits.update(dict.fromkeys(fnmatch.filter(self.layers, pattern), int(number)))
        return Choice(settings.keep_float, bits)

    def bits_within(self) -> dict[str, int]:
        """The widths that fit the budget of the settings, by the noise that each makes alone."""
        plan = make_plan(self.floats, self.settings.keep_float)
        elements = {layer_name(n): float(attribute(self.floats, _weight_of(n)).numel()) for n in plan.compute}
        reference = _outputs(self.floats, self.few)
        noise: dict[str, dict[int, float]] = {}
        for position, node in enumerate(plan.compute):
            self.context.progress(position, len(plan.compute), "choosing bits")
            noise[layer_name(node)] = {}
            for bits in BUDGET_BITS:
                output = _outputs(self._alone(plan, {}, node, bits, weights_only=True), self.few)
                noise[layer_name(node)][bits] = 10 ** (-_decibels(reference, output) / 10)
        self.context.progress(1, 1, "choosing bits")
        if self.settings.size is not None:
            return choose_bits(noise, elements, self.settings.size * 32 * sum(elements.values()))
        macs = {layer.name: layer.macs for layer in cost_of(self.floats).layers}
        costs = {layer_name(node): float(macs[node.name]) for node in plan.compute}
        return choose_bits(noise, costs, float(self.settings.bit_operations or 0) * 8 * sum(costs.values()))

    def sensitivities(self, choice: Choice) -> dict[str, float]:
        """For each layer the output's SQNR in dB when nothing else is quantized; the lower, the more sensitive."""
        plan, parameters = self._planned(choice.keep_float)
        reference = _outputs(self.floats, self.few)
        found = {}
        for position, node in enumerate(plan.compute):
            self.context.progress(position, len(plan.compute), "measuring sensitivities")
            name = layer_name(node)
            output = _outputs(self._alone(plan, parameters, node, choice.bits.get(name, 8)), self.few)
            found[name] = _decibels(reference, output)
        self.context.progress(1, 1, "measuring sensitivities")
        return found

    def alone(self, choice: Choice, layer: str) -> GraphModule:
        """The network with nothing but this layer quantized."""
        plan, parameters = self._planned(choice.keep_float)
        node = next(n for n in plan.compute if layer_name(n) == layer)
        return self._alone(plan, parameters, node, choice.bits.get(layer, 8))

    def _planned(self, keep_float: tuple[str, ...]) -> tuple[Plan, dict[Node, AffineParameters]]:
        """The plan on the float network itself and its calibration, made once."""
        if keep_float not in self._plans:
            plan = self._plan(self.floats, keep_float)
            self._plans[keep_float] = plan, self._parameters(self.floats, plan)
        return self._plans[keep_float]

    def _plan(self, module: GraphModule, keep_float: tuple[str, ...]) -> Plan:
        """What becomes integer: with float activations the weights alone."""
        plan = make_plan(module, keep_float)
        return plan if self.settings.activation_bits < FLOAT_BITS else replace(plan, values=[])

    def _alone(
        self,
        plan: Plan,
        parameters: dict[Node, AffineParameters],
        node: Node,
        bits: int,
        *,
        weights_only: bool = False,
    ) -> GraphModule:
        return alone(
            self.floats, plan, parameters, node, bits,
            per_channel=self.settings.granularity == "per-channel", activations=not weights_only,
        )  # fmt: skip

    def _parameters(self, module: GraphModule, plan: Plan) -> dict[Node, AffineParameters]:
        if not plan.values:
            return {}
        ranges = observe_ranges(module, plan, self.batches(), self.settings.calibration)
        return parameters_of(plan, ranges, symmetric=self.settings.symmetric, bits=self.settings.activation_bits)

    def quantized(self, choice: Choice) -> tuple[GraphModule, dict[str, Any]]:
        """The quantized network, and the report of it."""
        settings = self.settings
        module = duplicate(self.floats)
        plan = self._plan(module, choice.keep_float)
        parameters = self._parameters(module, plan)
        insert(module, plan, parameters, choice.bits, per_channel=settings.granularity == "per-channel")
        names = [node.name for node in plan.compute]
        report: dict[str, Any] = {}
        if settings.rounding == "adaround":
            report["rounding"] = adaround(
                module, self.floats, names, self._rounding_images(), iterations=settings.iterations,
                seed=self.context.seed, checkpoints=self._checkpoints(choice), progress=self.context.progress,
            )  # fmt: skip
        round_biases(module)
        noise, report["bias_corrected"] = compare(
            self.floats, module, names, self.few, correct=settings.bias_correction, batch_size=self.batch_size
        )
        bits = [choice.bits.get(layer_name(node), 8) for node in plan.compute]
        report["quantized_layers"] = [{**row.to_dict(), "bits": b} for row, b in zip(noise, bits, strict=True)]
        report["in_float"] = [
            {"layer": layer_name(n), "operator": str(n.target), "reason": why} for n, why in plan.in_float
        ]
        macs = {layer.name: layer.macs for layer in cost_of(self.floats).layers}
        integer = sum(macs.get(node.name, 0) for node in plan.compute if plan.values)
        report["int8_macs_share"] = integer / max(sum(macs.values()), 1)
        report["notes"] = [
            note for row, width in zip(noise, bits, strict=True) if (note := _suspicion(row, width)) is not None
        ]
        return module, report

    def _rounding_images(self) -> np.ndarray:
        return np.concatenate(list(self.batches(quiet=True)))

    def _checkpoints(self, choice: Choice) -> Path | None:
        if self.context.checkpoints is None:
            return None
        state = json.dumps([sorted(choice.keep_float), sorted(choice.bits.items())])
        return self.context.checkpoints / f"adaround-{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def _suspicion(row: LayerNoise, bits: int) -> str | None:
    """What to say of a layer whose channels have lost their content; None where they have not."""
    if row.channel_sqnr_db >= SUSPECT_DB:
        return None
    lost = (
        f"{row.layer} loses its content: half of its channels have less than {row.channel_sqnr_db:.0f} dB of signal to noise "
        f"({row.sqnr_db:.0f} dB over all)"
    )
    if row.sqnr_db - row.channel_sqnr_db > _UNEVEN_DB:
        return f"{lost}. Even its channels out with the step equalize before this one, or keep it: keep_float=[{row.layer}]"
    if bits < 8:
        return f"{lost} with {bits} bits. Give it more, layer_bits=[{row.layer}=8], or learn the rounding, rounding=adaround"
    # Eight bits and even channels: the noise came in, and the layers that made it are named.
    return None


def _decibels(reference: np.ndarray, output: np.ndarray) -> float:
    noise = sqnr(reference, output)
    return _EXACT_DB if noise is None else noise


def _weight_of(node: Node) -> str:
    weight: Any = node.args[1]
    return str(weight.target)


def _outputs(module: GraphModule, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        outputs: np.ndarray = simulator(module)(torch.from_numpy(images)).numpy()
    return outputs

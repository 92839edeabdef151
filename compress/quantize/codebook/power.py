"""Powers of two: every weight is 0 or ±2^n, reached step by step so that the rest of the network can make up for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule

from edgekit.bundle import Bundle
from edgekit.compress.distill.settings import Distillation, distillation
from edgekit.compress.distill.teacher import refuse_unfit_teachers
from edgekit.compress.layers import own_weights
from edgekit.compress.quantize.codebook.coding import entropy_bits, fixed_bits, put_codes
from edgekit.compress.rewrite import finish, fold_batch_norm, remove_dropout
from edgekit.compress.step import Context, Step, needs_float_weights
from edgekit.errors import StepError
from edgekit.program import aten, attribute, duplicate, layer_name, set_attribute


@dataclass(frozen=True, kw_only=True)
class PowersOfTwo(Step):
    """Weights as powers of two: a part of them is fixed, the others are trained on, and so forth until all are.

    Without epochs this is plain logarithmic quantization (Miyashita et al., arXiv:1603.01025).

    Attributes:
        bits: Of each code, 2 to 8: one value is 0, the others are ±2^n.
        portions: Share of the weights that is fixed after each phase; the last is 1.
        epochs: Epochs of training after each phase but the last; 0 for none.
        learning_rate: Peak learning rate of that training.
        distill: Share of the soft targets of the network as it was before in the loss, 0 to 1, the rest being
            cross-entropy; or the settings of the step ``distill``: ``distill=[teacher=big,method=decoupled]``.
        keep: Name patterns of layers that keep their weights.
    """

    name: ClassVar[str] = "powers-of-two"
    summary: ClassVar[str] = "weights of 0 and ±2^n, fixed in portions while the others are trained on"
    source: ClassVar[str] = "Zhou et al., 'Incremental Network Quantization', ICLR 2017, equations 1 to 4, algorithm 1"
    example: ClassVar[str] = "epochs=1,portions=[0.5,1]"

    bits: int = 5
    portions: tuple[float, ...] = (0.5, 0.75, 0.875, 1.0)
    epochs: int = 2
    learning_rate: float = 0.005
    distill: Distillation | float = 0.0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {self.bits}")
        rising = all(a < b for a, b in zip((0.0, *self.portions), self.portions, strict=False))
        if not self.portions or self.portions[-1] != 1 or not rising:
            raise ValueError(f"portions rise to 1, for example [0.5,0.75,1], not {list(self.portions)}")
        if self.epochs < 0:
            raise ValueError(f"epochs can't be {self.epochs}")
        distillation(self.distill)

    def requires(self, bundle: Bundle) -> None:
        needs_float_weights(self, bundle)
        refuse_unfit_teachers(self.distill, bundle)

    def apply(self, bundle: Bundle, context: Context) -> tuple[Bundle, dict[str, Any]]:
        module = bundle.module()
        remove_dropout(module)
        fold_batch_norm(module)
        names = [name for _, name in own_weights(module, self.keep)]
        if not names:
            raise StepError("there is no layer whose weights could be powers of two", "Keep fewer layers.")
        # The exponents are those of the weights before any training (equation 3).
        tables = {name: powers(attribute(module, name).detach(), self.bits) for name in names}
        report: dict[str, Any] = {"phases": []}
        trains = self.epochs > 0 and context.data is not None
        fixed = {name: torch.zeros_like(attribute(module, name), dtype=torch.bool) for name in names}
        for phase, portion in enumerate(self.portions if trains else (1.0,)):
            for name in names:
                weight = attribute(module, name)
                fixed[name] = _largest(weight.detach(), fixed[name], portion)
                weight.data = torch.where(fixed[name], _nearest(weight.data, tables[name]), weight.data)
            if portion < 1:
                report["phases"].append({"portion": portion, **self._train(module, fixed, bundle, context, phase)})
        report["layers"] = []
        for node, name in own_weights(module, self.keep):
            table = tables[name]
            codes = (attribute(module, name).detach().unsqueeze(-1) - table).abs().argmin(-1)
            report["layers"].append(
                {
                    "layer": layer_name(node),
                    "weights": codes.numel(),
                    "largest_exponent": int(table.max().log2()),
                    "zeros": float((table[codes] == 0).float().mean()),
                    "entropy_bits": entropy_bits(codes),
                    "fixed_bits": fixed_bits(len(table)),
                }
            )
            # Not a parameter: training it would leave the powers of two.
            put_codes(module, node, codes, table)
        finish(module)
        return bundle.with_module(module), report

    def _train(
        self, module: GraphModule, fixed: dict[str, torch.Tensor], bundle: Bundle, context: Context, phase: int
    ) -> dict[str, Any]:
        """Trains what is not fixed, in place (algorithm 1)."""
        from edgekit.compress.distill.loss import distillation_loss
        from edgekit.training import TrainingSettings, train

        masked = duplicate(module)
        for node, name in own_weights(masked):
            if name not in fixed:
                continue
            source: Any = node.args[1]
            set_attribute(masked, f"{name}_mask", fixed[name])
            set_attribute(masked, f"{name}_fixed", attribute(masked, name).detach().clone())
            with masked.graph.inserting_before(node):
                parts = [masked.graph.get_attr(f"{name}_{part}") for part in ("mask", "fixed")]
                chosen = masked.graph.call_function(aten.where.self, (parts[0], parts[1], source))
            node.update_arg(1, chosen)
        masked.recompile()
        folder = context.checkpoints / f"phase-{phase}" if context.checkpoints is not None else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        loss = distillation_loss(self.distill, masked, bundle, seed=context.seed)
        result = train(
            masked,
            context.dataset(self.name),
            bundle.preprocessing,
            # Between phases the network is not judged: the last epoch goes on.
            TrainingSettings(epochs=self.epochs, learning_rate=self.learning_rate, keep="last", seed=context.seed),
            checkpoint=folder,
            progress=replace(context).progress,
            device=context.device,
            loss=loss,
        )
        trained = dict(masked.named_parameters())
        for name, parameter in module.named_parameters():
            moved = trained[name].detach()
            parameter.data = torch.where(fixed[name], parameter.data, moved) if name in fixed else moved.clone()
        told = {"distill": loss.report} if loss is not None else {}
        return {"validation_top1": result.last_validation_top1, "history": result.history, **told}


def powers(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The values that a layer may take, ascending: 0 and ±2^n for n2 ≤ n ≤ n1 (equations 1 to 3).

    n1 = floor(log2(4 max|W| / 3)), n2 = n1 + 1 - 2^(bits - 1) / 2.
    """
    largest = float(weight.abs().max())
    n1 = math.floor(math.log2(4 * largest / 3)) if largest > 0 else 0
    n2 = n1 + 1 - 2 ** (bits - 1) // 2
    positive = torch.tensor([2.0**n for n in range(n2, n1 + 1)])
    return torch.cat([-positive.flip(0), torch.zeros(1), positive])


def _nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Equation 4: between two neighbours a < b the border is (a + b) / 2."""
    return table[(values.unsqueeze(-1) - table).abs().argmin(-1)]


def _largest(weight: torch.Tensor, fixed: torch.Tensor, portion: float) -> torch.Tensor:
    """What is fixed, and of the rest the weights of largest magnitude, until this share of all is."""
    magnitude = torch.where(fixed, float("inf"), weight.abs()).reshape(-1)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[magnitude.argsort(descending=True, stable=True)[: max(1, round(portion * weight.numel()))]] = True
    return mask.reshape(weight.shape)

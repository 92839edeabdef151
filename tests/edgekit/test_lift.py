"""A program that is lifted from an edited graph is the one that tracing it anew would give."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from edgekit import compress, load
from edgekit.bundle import Bundle
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.quantize.scheme import AffineParameters
from edgekit.lift import lifted
from edgekit.program import attribute, duplicate, export_program, trainable
from edgekit.pt2 import load_pt2, save_pt2


class _Odd(torch.nn.Module):
    """Weights that two layers share, a buffer that is not stored, tensors made on the way, a size taken from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3)
        self.second = torch.nn.Conv2d(8, 8, 3)
        self.third = torch.nn.Conv2d(8, 8, 3)
        self.third.weight = self.second.weight
        self.head = torch.nn.Linear(8, 4)
        self.register_buffer("halves", torch.full((8, 1, 1), 0.5), persistent=False)
        self.plain = torch.arange(8.0).view(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x))) * self.halves + self.plain
        x = x * torch.tensor(2.0) + torch.tensor([1.0] * 8).view(8, 1, 1)
        y: torch.Tensor = self.head(x.reshape(x.shape[0], 8, -1).mean(2))
        return y


def _quantized(program: ExportedProgram) -> torch.fx.GraphModule:
    """The graph with rounding put in, by scales of no meaning."""
    module = trainable(program)
    plan = make_plan(module)
    insert(module, plan, {plan.leader(node): AffineParameters(0.05, 3) for node in plan.values})
    return module


def _values(program: ExportedProgram) -> Counter[Any]:
    """What each operator that is read gives: its shape, a free batch as -1."""
    found: Counter[Any] = Counter()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and (node.users or node.op == "placeholder"):
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            found[str(node.target), shape, value.dtype] += 1
    return found


@pytest.mark.parametrize(
    "name", ["odd", "digits-cnn", "resnet20-cifar", "shufflenet-v2-0.5", "keyword-transformer", "keyword-gru"]
)
def test_lifted_is_what_tracing_gives(name: str, tmp_path: Path) -> None:
    if name == "odd":
        torch.manual_seed(0)
        shape: tuple[int, ...] = (3, 12, 12)
        program = export_program(_Odd(), shape)
    else:
        bundle = load(f"zoo:{name}")
        program, shape = bundle.program, bundle.input_shape
    module = _quantized(program)
    made = lifted(duplicate(module), program)
    traced = export_program(module, shape)

    assert made.state_dict.keys() == traced.state_dict.keys()
    assert all(torch.equal(tensor, traced.state_dict[key]) for key, tensor in made.state_dict.items())
    assert made.range_constraints.keys() == program.range_constraints.keys()
    assert _values(made) == _values(traced)
    save_pt2(made, tmp_path / "made.pt2")
    again = load_pt2(tmp_path / "made.pt2")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32))
    with torch.no_grad():
        wanted = trainable(traced)(x)
        assert torch.equal(trainable(made)(x), wanted)
        assert torch.equal(trainable(again)(x), wanted)
    # It can be edited, traced and lifted again like any other.
    assert _values(export_program(trainable(again), shape)) == _values(traced)
    assert _values(lifted(trainable(again), again)) == _values(traced)


def test_quantize_traces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load("zoo:digits-cnn")

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was traced anew")

    monkeypatch.setattr("edgekit.program.export_program", refused)
    small: Bundle = compress(bundle, "quantize:images=64", "digits")
    assert small.precision == "int8"


def test_lifted_takes_the_tensors_as_they_are() -> None:
    program = load("zoo:digits-cnn").program
    module = _quantized(program)
    name = next(node.target for node in module.graph.nodes if node.op == "get_attr" and "int8" in str(node.target))
    assert lifted(module, program).state_dict[str(name)] is attribute(module, str(name))

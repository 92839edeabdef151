"""The batch in front of every tensor: the same results as the user's code, rule by rule and for torch's own attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from edgekit.batch_first import needs_batch_first, put_batch_first
from edgekit.cost import cost_of
from edgekit.layout import UnfitError, viewed, whole
from edgekit.program import aten, export_program, shape_of, trainable
from edgekit.testing import networks

L, E, H = 5, 12, 3
Function = Callable[[torch.Tensor], torch.Tensor]


class Code(nn.Module):
    """A function of (time, batch, width), as a module over (batch, time, width)."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x.transpose(0, 1))


def _rewritten(function: Function) -> GraphModule:
    """The graph behind the rewriting, proved to compute what the code does, for several batches."""
    code = Code(function).eval()
    module = put_batch_first(trainable(export_program(code, (L, E))))
    for batch in (1, 2, 7):
        x = torch.randn(batch, L, E, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(module(x), code(x), rtol=1e-5, atol=1e-5)
    return module


def _in_front(module: GraphModule) -> bool:
    """Whether no tensor of the graph but what is returned has the batch anywhere but alone in front."""
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "call_function"]
    shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
    return all(isinstance(size, int) for shape in shapes for size in shape[1:])


def _heads(x: torch.Tensor) -> torch.Tensor:
    """(time, batch, width) as (batch × heads, time, width / heads), as torch's attention has it."""
    return x.reshape(L, x.shape[1] * H, E // H).transpose(0, 1)


def _back(y: torch.Tensor, batch: int) -> torch.Tensor:
    return y.transpose(0, 1).reshape(L, batch, E)


TABLE = torch.randn(L, 1, E, generator=torch.Generator().manual_seed(1))
BIAS = torch.randn(L, L, generator=torch.Generator().manual_seed(2))
WEIGHT = torch.randn(3 * E, E, generator=torch.Generator().manual_seed(3))


def _packed(x: torch.Tensor) -> torch.Tensor:
    packed = F.linear(x, WEIGHT).unflatten(-1, (3, E)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    q, k, v = packed[0], packed[1], packed[2]
    return (q * 2 - k + v).transpose(0, 1)


def _unbound(x: torch.Tensor) -> torch.Tensor:
    packed = F.linear(x.transpose(0, 1), WEIGHT).reshape(x.shape[1], L, 3, H, E // H).permute(2, 0, 3, 1, 4)
    q, k, v = packed.unbind(0)
    return (q @ k.transpose(2, 3)) @ v


RULES: dict[str, Function] = {
    "view": lambda x: F.linear(x, WEIGHT).view(L * x.shape[1], H, E).transpose(0, 1).sum(0) * 1.0,
    "permutation": lambda x: x.permute(2, 0, 1).permute(2, 1, 0),
    "select": lambda x: F.relu(x)[2],
    "select of the batch": lambda x: F.relu(x)[:, 0],
    "packed select": _packed,
    "unbind": _unbound,
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1),
    "element by element": lambda x: F.gelu(x) * 3,
    "constant": lambda x: (x + TABLE).transpose(0, 1),
    "constant first": lambda x: TABLE - x,
    "two tensors": lambda x: (F.linear(x, WEIGHT[:E]) - x.permute(1, 0, 2).transpose(0, 1)).transpose(0, 1),
    "a mean taken off": lambda x: x - x.mean(2, keepdim=True),
    "linear": lambda x: F.linear(x.reshape(-1, E), WEIGHT).view(L, -1, 3 * E).transpose(0, 1),
    "layer norm": lambda x: F.layer_norm(x, (E,)).transpose(0, 1),
    "softmax": lambda x: x.softmax(0).transpose(0, 1),
    "softmax of a part": lambda x: x.unflatten(2, (H, E // H)).softmax(3).flatten(2).transpose(0, 1),
    "mean": lambda x: x.mean(0),
    "mean of two": lambda x: x.unflatten(2, (H, E // H)).mean((0, 2)),
    "cat": lambda x: torch.cat([x, F.relu(x)]).transpose(0, 1),
    "cat of a token": lambda x: torch.cat([TABLE[:1].expand(-1, x.shape[1], -1), x]).transpose(0, 1),
    "product": lambda x: _back(
        torch.bmm(torch.bmm(_heads(x), _heads(x).transpose(1, 2)), _heads(x)), x.shape[1]
    ).transpose(0, 1),
    "product and mask": lambda x: torch.baddbmm(BIAS[None], _heads(x), _heads(x).transpose(1, 2)).sum((1, 2)),
    "attention": lambda x: F.scaled_dot_product_attention(
        *(_heads(x).view(-1, H, L, E // H) for _ in range(3)), BIAS[None, None]
    ).transpose(1, 2).flatten(2),
    "no rule": lambda x: torch.cumsum(torch.flip(F.relu(x), [0]), 0).transpose(0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_each_rule_gives_what_the_code_does(name: str) -> None:
    module = _rewritten(RULES[name])
    targets = [node.target for node in module.graph.nodes]
    if name == "no rule":
        assert aten.cumsum.default in targets
        assert not _in_front(module), "an operator without a rule reads what the code gives it"
    if name in ("packed select", "unbind"):
        assert targets.count(aten.slice.Tensor) == 3
        assert {aten.select.int, aten.unbind.int}.isdisjoint(targets)
    if name in ("linear", "layer norm", "softmax", "mean", "product", "attention", "packed select", "cat", "constant"):
        assert _in_front(module)


class Own(nn.Module):
    """Attention by torch's module, in the forms that its export has."""

    def __init__(self, *, time_first: bool, weights: bool, cross: str = "") -> None:
        super().__init__()
        sizes = {"kdim": 8, "vdim": 8} if cross == "narrow" else {}
        self.attention = nn.MultiheadAttention(E, H, batch_first=not time_first, **sizes)
        self.memory = nn.Linear(E, 8 if cross == "narrow" else E) if cross else nn.Identity()
        self.weights, self.cross = weights, cross

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.attention.batch_first else x.transpose(0, 1)
        memory = self.memory(x)
        values = memory * 2 if self.cross == "apart" else memory
        y = self.attention(x, memory, values, need_weights=self.weights)[0]
        return y if self.attention.batch_first else y.transpose(0, 1)


@pytest.mark.parametrize(
    ("time_first", "weights", "cross"),
    [
        (True, True, ""), (False, False, ""), (True, False, "same"), (False, True, "same"), (True, True, "narrow"),
        (False, False, "apart"),
    ],
)  # fmt: skip
def test_attention_of_torch_is_computed_with_the_batch_in_front(time_first: bool, weights: bool, cross: str) -> None:
    torch.manual_seed(0)
    network = Own(time_first=time_first, weights=weights, cross=cross).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    module = trainable(export_program(network, (L, E)))
    assert _in_front(module)
    assert not needs_batch_first(module)
    x = torch.randn(4, L, E, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x), network(x), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in network.parameters())
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_whole_encoder_counts_its_work_and_is_exported_again() -> None:
    layer = nn.TransformerEncoderLayer(E, H, 20, dropout=0.2)
    network = nn.TransformerEncoder(layer, 2, nn.LayerNorm(E), enable_nested_tensor=False)
    module = trainable(export_program(Code(network), (L, E)))
    again = trainable(export_program(module, (L, E)))
    assert [n.target for n in again.graph.nodes] == [n.target for n in module.graph.nodes]
    cost = cost_of(module)
    assert not cost.uncounted
    assert {"function.layers.0.self_attn.in_proj", "function.layers.1.self_attn.out_proj"} <= {
        layer.path for layer in cost.layers
    }
    assert cost.macs == 2 * (L * E * 4 * E + 2 * L * E * 20 + 2 * L * L * E)


def test_other_graphs_stay_as_they_are() -> None:
    """Attention that has its batch in front, and a folded batch in a network without attention."""
    assert not needs_batch_first(trainable(export_program(networks.make("attention"), networks.INPUT_SHAPE)))
    folded = Code(lambda x: F.linear(x.reshape(-1, E), WEIGHT).view(L, -1, 3 * E).transpose(0, 1))
    assert not needs_batch_first(trainable(export_program(folded, (L, E))))


def test_views_that_no_atoms_make_are_refused() -> None:
    module = trainable(export_program(Code(lambda x: F.relu(x)), (L, E)))
    node = next(n for n in module.graph.nodes if n.op == "placeholder")
    value = whole(node)
    assert [[a.size for a in group] for group in viewed(value, [(1, 1), (20, 0), (3, 0)]).logical] == [
        [(1, 1)], [(5, 0), (4, 0)], [(3, 0)],
    ]  # fmt: skip
    assert shape_of(node) == (-1, L, E)
    for sizes in ([(1, 1), (7, 0)], [(1, 1), (15, 0), (4, 0), (2, 0)], [(8, 0), (1, 1)]):
        with pytest.raises(UnfitError):
            viewed(value, sizes)

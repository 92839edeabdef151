"""Attention, and what stands beside it: which channels go together, held against the whole network with them at zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.surgery import cut
from edgekit.program import export_program, trainable
from edgekit.testing.silence import silence, twice


@pytest.mark.parametrize("fused", [False, True])
def test_attention_loses_channels_of_every_head_alike(fused: bool) -> None:
    """Queries and keys that are cut together leave the products of the others, with the scale of before."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(10, 24) for _ in range(3))
            self.out = nn.Linear(24, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            layers = (self.query, self.key, self.value)
            q, k, v = (layer(x).unflatten(2, (3, 8)).transpose(1, 2) for layer in layers)
            if fused:
                y = nn.functional.scaled_dot_product_attention(q, k, v)
            else:
                y = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2)).mean(1)

    torch.manual_seed(0)
    program = export_program(Heads().eval(), (6, 10))
    x = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    whole, flow, pruned, again = twice(program)
    rows = {
        name: flow.roots(next(s.ids for s in flow.slots if s.parameter == f"{name}.weight" and s.role == "out"))
        for name in ("query", "key", "value")
    }
    np.testing.assert_array_equal(rows["query"], rows["key"])
    assert len(set(rows["query"].tolist())) == len(set(rows["value"].tolist())) == 8
    removed = {int(rows["query"][i]) for i in (0, 3, 5)} | {int(rows["value"][i]) for i in (1, 2)}
    silence(whole, flow, removed)
    cut(again, removed)
    assert pruned.query.weight.shape == pruned.key.weight.shape == (15, 10)
    assert pruned.value.weight.shape == (18, 10)
    torch.testing.assert_close(pruned(x), whole(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["weights", "fused", "memory", "packed"])
def test_attention_of_torch_loses_queries_with_keys_and_values_alone(form: str) -> None:
    """Whichever graph torch makes of it: the whole network with those channels at zero gives the same."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 3, batch_first=form == "fused")
            self.memory, self.packed, self.out = nn.Linear(24, 24), nn.Linear(24, 72), nn.Linear(24, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if form == "packed":
                q, k, v = self.packed(x).reshape(x.shape[0], 6, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
                y = nn.functional.scaled_dot_product_attention(q, k, v)
                return self.out(y.transpose(1, 2).flatten(2)).mean(1)
            x = x if form == "fused" else x.transpose(0, 1)
            memory = self.memory(x) if form == "memory" else x
            y = self.attention(x, memory, memory, need_weights=form == "weights")[0]
            return self.out(y).mean(1 if form == "fused" else 0)

    torch.manual_seed(0)
    program = export_program(Own().eval(), (6, 24))
    x = torch.randn(4, 6, 24, generator=torch.Generator().manual_seed(1))
    whole, flow, pruned, again = twice(program)
    rows = [
        flow.roots(s.ids).tolist()
        for s in flow.slots
        if s.role == "out" and ("in_proj" in s.parameter or "packed" in s.parameter)
    ]
    flat = [root for part in rows for root in part]
    queries, keys, values = flat[:24], flat[24:48], flat[48:]
    assert queries == keys
    assert queries == queries[:8] * 3
    assert values == values[:8] * 3
    assert not set(queries) & set(values)
    removed = {queries[i] for i in (0, 3, 5)} | {values[1]}
    if form != "packed":  # the embedding behind the attention
        removed.add(int(flow.roots(next(s.ids for s in flow.slots if s.parameter.endswith("out_proj.bias")))[2]))
    silence(whole, flow, removed)
    cut(again, removed)
    # 3 heads of 8: 5 queries and keys, 7 values.
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in pruned.parameters()) >= 21 * 25
    torch.testing.assert_close(pruned(x), whole(x), rtol=1e-5, atol=1e-6)
    smaller = trainable(export_program(pruned, (6, 24)))
    torch.testing.assert_close(smaller(x), whole(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time_first", [False, True])
def test_a_class_token_follows_the_channels_it_stands_beside(time_first: bool) -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 12))
            self.positions = nn.Parameter(torch.randn(4, 12))
            self.attention = nn.MultiheadAttention(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedding(x)
            if time_first:
                x = torch.cat([self.token.expand(1, x.shape[0], 12), x.transpose(0, 1)])
                x = x + self.positions[:, None]
                return self.head(x + self.attention(x, x, x)[0])[0]
            return self.head(torch.cat([self.token.expand(x.shape[0], 1, 12), x], 1) + self.positions)[:, 0]

    torch.manual_seed(0)
    program = export_program(Token().eval(), (3, 6))
    x = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))
    whole, flow, pruned, again = twice(program)
    roots = flow.roots(next(s.ids for s in flow.slots if s.parameter == "embedding.weight"))
    removed = {int(root) for root in roots[[1, 4, 7]]}
    assert not any(flow.is_frozen(root) for root in removed)
    silence(whole, flow, removed)
    cut(again, removed)
    assert pruned.token.shape == (1, 1, 9)
    torch.testing.assert_close(pruned(x), whole(x), rtol=1e-5, atol=1e-6)


def test_a_weight_that_the_graph_computes_stays_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(nn.functional.linear(x, self.first.weight * 2).relu())

    flow = analyse(trainable(export_program(Tied().eval(), (6,))), RULES)
    assert all(flow.is_frozen(int(root)) for slot in flow.slots for root in flow.roots(slot.ids))


def test_layer_norm_follows_its_channels() -> None:
    network = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 4)).eval()
    module = trainable(export_program(network, (6,)))
    flow = analyse(module, RULES)
    roots = flow.roots(next(s.ids for s in flow.slots if s.role == "out"))
    cut(flow, {int(root) for root in roots[:5]})
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    hidden = nn.functional.layer_norm(network[0](x)[:, 5:], (7,), network[1].weight[5:], network[1].bias[5:])
    torch.testing.assert_close(module(x), nn.functional.linear(hidden, network[2].weight[:, 5:], network[2].bias))

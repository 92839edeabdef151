"""Blocks are found in the graph, and what is left computes what a network written without them does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.compress.compact.blocks import find_blocks, remove_blocks
from edgekit.compress.compact.depth import removal_order
from edgekit.compress.compact.judge import divergence
from edgekit.cost import cost_of
from edgekit.program import aten, export_program, trainable
from edgekit.testing import networks
from edgekit.zoo.resnet_cifar import CifarResNet


def _with_statistics(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
    return network.eval()


SMALL = (3, 16, 16)


class Plain(nn.Module):
    """A VGG in small: two convolutions of the same width in a row, twice; the batch size is read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 24, 5, padding=2)
        self.head = nn.Linear(24 * 16, networks.CLASSES)
        self.skipped: set[str] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("conv1", "conv2", "pool", "conv3", "conv4", "pool"):
            if name == "pool":
                x = F.max_pool2d(x, 2)
            elif name not in self.skipped:
                x = F.relu(getattr(self, name)(x))
        return self.head(x.view(x.shape[0], -1))


def test_blocks_of_a_residual_network_are_those_without_a_change_of_shape() -> None:
    torch.manual_seed(0)
    blocks = find_blocks(trainable(export_program(_with_statistics(CifarResNet(2)), SMALL)))
    assert [block.layers[0] for block in blocks] == [
        f"layer{stage}.{block}.conv1" for stage, block in ((1, 0), (1, 1), (2, 1), (3, 1))
    ]
    # Two 3×3 convolutions on every position, and their batch norms.
    assert {block.macs for block in blocks} == {2 * 9 * 16 * 16 * 16 * 16}
    assert blocks[0].parameters == 2 * (9 * 16 * 16 + 2 * 16)


@pytest.mark.parametrize("gone", [[0, 1], [1, 3]])
def test_without_blocks_it_is_the_network_written_without_them(gone: list[int]) -> None:
    torch.manual_seed(0)
    network = _with_statistics(CifarResNet(2))
    module = trainable(export_program(network, SMALL))
    blocks = find_blocks(module)
    remove_blocks(module, [blocks[i] for i in gone])
    whole = cost_of(trainable(export_program(network, SMALL))).macs
    for i in gone:
        stage, position, _ = blocks[i].layers[0].split(".")
        getattr(network, stage)[int(position)] = nn.Identity()
    x = torch.randn(2, *SMALL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(module(x), network(x), rtol=1e-5, atol=1e-5)
    again = trainable(export_program(module, SMALL))
    assert cost_of(again).macs == whole - sum(blocks[i].macs for i in gone)
    assert set(again.state_dict()) == {name for name in network.state_dict() if "num_batches" not in name}


def test_layers_of_a_plain_network_are_blocks_too() -> None:
    torch.manual_seed(0)
    network = Plain().eval()
    module = trainable(export_program(network, networks.INPUT_SHAPE))
    blocks = find_blocks(module)
    assert [block.layers for block in blocks] == [("conv2",), ("conv4",)]
    remove_blocks(module, blocks)
    network.skipped = {"conv2", "conv4"}
    x = networks.images(3)
    with torch.no_grad():
        torch.testing.assert_close(module(x), network(x), rtol=1e-5, atol=1e-5)


def test_the_size_of_the_batch_may_be_read_inside_of_a_block() -> None:
    torch.manual_seed(0)
    network = Plain().eval()
    module = trainable(export_program(network, networks.INPUT_SHAPE))
    (size,) = (node for node in module.graph.nodes if node.target is aten.sym_size.int)
    block = find_blocks(module)[0]
    inner = next(node for node in module.graph.nodes if node.name == block.nodes[0])
    inner.append(size)
    size.update_arg(0, inner)
    module.recompile()
    assert find_blocks(module)[0] == block
    network.skipped = {"conv2"}
    x = networks.images(3)
    with torch.no_grad():
        wanted, whole = network(x), module(x)
        (removal,) = removal_order(module, [block], [x[:1], x[1:]])
        assert removal.divergence == pytest.approx(divergence(whole, wanted), rel=1e-5)
        remove_blocks(module, [block])
        torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-5)


def test_blocks_of_many_kinds_can_go() -> None:
    found = {}
    for name in ("residual", "depthwise", "squeeze-excite", "attention", "concat", "split-shuffle"):
        program = export_program(networks.make(name), networks.INPUT_SHAPE)
        blocks = find_blocks(trainable(program))
        found[name] = [block.layers for block in blocks]
        if blocks:
            module = trainable(program)
            remove_blocks(module, blocks)
            again = trainable(export_program(module, networks.INPUT_SHAPE))
            again(networks.images(2)).sum().backward()
    assert {name: layers for name, layers in found.items() if layers} == {
        "residual": [("conv1",)],
        "depthwise": [("expand", "depthwise", "project")],
        "squeeze-excite": [("expand", "reduce", "excite", "project")],
        "attention": [("query", "key", "value", "matmul", "matmul_1", "out"), ("wide", "narrow")],
    }


def test_a_part_that_is_read_from_outside_stays() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
            self.head = nn.Linear(8, networks.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            inner = self.a(x)
            x = F.relu(x + self.b(F.relu(inner)))
            return self.head((x * inner).mean((2, 3)))

    torch.manual_seed(0)
    assert find_blocks(trainable(export_program(Read(), networks.INPUT_SHAPE))) == []


def test_the_order_is_that_of_what_is_missed_least_when_blocks_are_really_taken_out() -> None:
    torch.manual_seed(0)
    network = _with_statistics(CifarResNet(2))
    with torch.no_grad():
        for weight, gain in ((network.layer2[1].bn2, 1e-3), (network.layer1[0].bn2, 0.1)):
            weight.weight.mul_(gain)
    program = export_program(network, SMALL)
    module = trainable(program)
    blocks = find_blocks(module)
    x = torch.randn(12, *SMALL, generator=torch.Generator().manual_seed(1))
    order = removal_order(module, blocks, x.split(5))
    assert len(order) == len(blocks) == 4
    assert order[0].block.layers[0] == "layer2.1.conv1"
    assert order[1].block.layers[0] == "layer1.0.conv1"
    with torch.no_grad():
        wanted = module(x).double().softmax(1)
        for count in range(1, 5):
            less = trainable(program)
            remove_blocks(less, [removal.block for removal in order[:count]])
            got = less(x).double().softmax(1)
            expected = float((wanted * (wanted.log() - got.log())).sum(1).mean())
            assert order[count - 1].divergence == pytest.approx(expected, rel=1e-4, abs=1e-9)

"""In which order blocks are taken out: the next one is that without which the outputs change least for what it saves.

Taken out one at a time, and judged together with those that are gone: two neighbours may each be easy to miss, and not both.
A block's figure seldom falls when others go, so only those at the front of the queue are judged anew (Minoux, "Accelerated
Greedy Algorithms", 1978), which makes some tens of passes out of hundreds.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.compact.blocks import Block
from edgekit.compress.compact.judge import divergence
from edgekit.compress.compact.replacement import Measure
from edgekit.compress.step import Progress, no_progress
from edgekit.program import input_node


@dataclass(frozen=True)
class Removal:
    """One block on its way out.

    Attributes:
        block: The block.
        divergence: Of the outputs from the original's once it is gone with all before it, in nats.
    """

    block: Block
    divergence: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values: what a reader wants to know."""
        return {"layers": list(self.block.layers), "divergence": self.divergence}


def removal_order(
    module: GraphModule,
    blocks: Sequence[Block],
    parts: Sequence[torch.Tensor],
    measure: Measure = "macs",
    progress: Progress = no_progress,
) -> list[Removal]:
    """All blocks, those first that are missed least for what they cost.

    Args:
        module: The graph that the blocks were found in; it is not changed.
        blocks: The blocks.
        parts: Images, by batch.
        measure: What a block saves.
        progress: Told how many are ranked.
    """
    with torch.no_grad():
        wanted = [module(part) for part in parts]

    def without(gone: Collection[Block]) -> float:
        run = _Without(module, gone)
        with torch.no_grad():
            outputs = [run.run(part) for part in parts]
        return divergence(torch.cat(wanted), torch.cat(outputs))

    gone: list[Removal] = []
    now = 0.0
    # A place in the list breaks ties, so that blocks themselves are never compared.
    queue = [(-float("inf"), place, -1) for place in range(len(blocks))]
    while queue:
        _, place, judged = heapq.heappop(queue)
        block = blocks[place]
        found = without([*(removal.block for removal in gone), block])
        price = (found - now) / max(getattr(block, measure), 1)
        if judged == len(gone) or not queue or price <= queue[0][0]:
            gone.append(Removal(block, found))
            now = found
            progress(len(gone), len(blocks), "ranking blocks")
        else:
            heapq.heappush(queue, (price, place, len(gone)))
    return gone


class _Without(torch.fx.Interpreter):
    """Runs a graph as if blocks had been taken out."""

    def __init__(self, module: GraphModule, gone: Collection[Block]) -> None:
        super().__init__(module, garbage_collect_values=False)
        named = {node.name: node for node in module.graph.nodes}
        self._entry = {block.exit: named[block.entry] for block in gone}
        self._skipped = {name for block in gone for name in block.nodes}
        self._input = input_node(module)

    def run_node(self, n: Node) -> Any:
        if n.name in self._entry:
            return self.env[self._entry[n.name]]
        if n.name in self._skipped:
            return None
        if n.op == "call_function" and n.all_input_nodes and self.env.get(n.all_input_nodes[0]) is None:
            # The size of the batch, read inside of a block.
            return self.env[self._input].shape[0]
        return super().run_node(n)

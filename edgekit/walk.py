"""Running a graph step by step, to look at values on their way, and to change what comes after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.fx import GraphModule, Node


class Walk:
    """Runs a graph node by node, all batches abreast, and forgets a value when nobody reads it any more.

    Args:
        module: The graph.
        parts: The batches, each of shape (n, …).
        wanted: Names of the nodes whose values will be asked for; a name as often as it will be.
    """

    def __init__(self, module: GraphModule, parts: Sequence[torch.Tensor], wanted: Iterable[str]) -> None:
        self._module = module
        self._runs = [torch.fx.Interpreter(module, garbage_collect_values=False) for _ in parts]
        for run, part in zip(self._runs, parts, strict=True):
            # Convolutions of small batches are faster so.
            layout = torch.channels_last if part.dim() == 4 else torch.contiguous_format
            run.args_iter = iter([part.contiguous(memory_format=layout)])
        self._wanted = Counter(wanted)
        self._kept: dict[str, list[torch.Tensor]] = {}
        last_reader = {source: node for node in module.graph.nodes for source in node.all_input_nodes}
        self._dead: dict[Node, list[Node]] = {}
        for source, reader in last_reader.items():
            self._dead.setdefault(reader, []).append(source)
        self._steps = self._walk(module)

    def now(self, node: Node) -> list[torch.Tensor] | None:
        """The values of any node that are in memory at this step; None before it was run, and when it is forgotten."""
        values = [run.env.get(node) for run in self._runs]
        return None if any(value is None for value in values) else values

    def again(self, node: Node) -> list[torch.Tensor]:
        """Runs the node of this step once more, after its parameters have changed; later nodes read what it gives now."""
        for run in self._runs:
            run.env[node] = run.run_node(node)
        return [run.env[node] for run in self._runs]

    def onward(self, part: int, node: Node, value: torch.Tensor, until: Node) -> torch.Tensor:
        """What a later node would give for one batch if the node of this step gave this value; gradients flow through it.

        Args:
            part: Which batch.
            node: The node of this step.
            value: In place of its own.
            until: The later node, or this one.
        """
        run = torch.fx.Interpreter(self._module, garbage_collect_values=False)
        run.env = {**self._runs[part].env, node: value}
        after = node
        while after is not until:
            after = after.next
            run.env[after] = run.run_node(after)
        return run.env[until]  # type: ignore[no-any-return]

    def steps(self) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Name and values of each wanted node, in the order of the graph; what is done to the values in place holds."""
        return self._steps

    def _walk(self, module: GraphModule) -> Iterator[tuple[str, list[torch.Tensor]]]:
        for node in module.graph.nodes:
            for run in self._runs:
                run.env[node] = run.run_node(node)
            if node.name in self._wanted:
                yield node.name, [run.env[node] for run in self._runs]
            for source in self._dead.get(node, ()):
                for run in self._runs:
                    del run.env[source]

    def value(self, name: str) -> list[torch.Tensor]:
        """The values of a wanted node; the graph is run until there. They are kept until asked for as often as wanted."""
        while name not in self._kept:
            found, values = next(self._steps)
            self._kept[found] = values
        self._wanted[name] -= 1
        return self._kept[name] if self._wanted[name] else self._kept.pop(name)

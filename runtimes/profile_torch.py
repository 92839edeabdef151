"""Times of each node of a program in eager PyTorch."""

from __future__ import annotations

import time
from typing import Any

from .profile import WARM_RUNS, Operator, Profile, timed
from .runtime import RunError


def profile(module: Any, x: Any, runs: int) -> Profile:
    """Runs a graph node by node, with a clock around each.

    Args:
        module: The ``torch.fx.GraphModule``.
        x: Its input.
        runs: Profiled runs.

    Raises:
        RunError: If it is no graph.
    """
    import torch

    if not isinstance(module, torch.fx.GraphModule):
        raise RunError("a compiled program has no layers that could be timed one by one: profile it eagerly")

    class Clocked(torch.fx.Interpreter):
        def __init__(self) -> None:
            super().__init__(module)
            self.taken: dict[str, list[float]] = {}

        def run_node(self, n: Any) -> Any:
            start = time.perf_counter_ns()
            result = super().run_node(n)
            took = (time.perf_counter_ns() - start) / 1e6
            if n.op not in ("placeholder", "get_attr", "output"):
                self.taken.setdefault(n.name, []).append(took)
            return result

    clocked = Clocked()
    whole, profiled = [], []
    with torch.inference_mode():
        for run in range(WARM_RUNS + runs):
            whole.append(timed(lambda: module(x)))
            profiled.append(timed(lambda: clocked.run(x)))
            if run == WARM_RUNS - 1:
                clocked.taken.clear()
    operators = [
        Operator(
            name=node.name,
            type=str(node.target).removeprefix("aten."),
            inputs=tuple(
                str(source.target) if source.op == "get_attr" else source.name for source in node.all_input_nodes
            ),
            outputs=(node.name,),
            samples_ms=tuple(clocked.taken[node.name]),
        )
        for node in module.graph.nodes
        if node.name in clocked.taken
    ]
    return Profile(
        operators=tuple(operators),
        whole_ms=tuple(whole[WARM_RUNS:]),
        profiled_ms=tuple(profiled[WARM_RUNS:]),
        method="each node of the program run by itself, eagerly, with a clock around it",
    )

"""Times of each node that OpenVINO executes, from its own performance counters."""

from __future__ import annotations

from typing import Any

from .profile import WARM_RUNS, Operator, Profile, distinct, timed


def profile(model: Any, request: Any, tensor: Any, runs: int) -> Profile:
    """Counts in a second request, of the same model compiled with the counters on; the first times the whole.

    Args:
        model: The ``openvino.CompiledModel`` with its counters on.
        request: An inference request of the model without them, its input set.
        tensor: The input.
        runs: Profiled runs.
    """
    counted = model.create_infer_request()
    counted.set_input_tensor(tensor)
    whole, profiled = [], []
    samples: list[list[Any]] = []
    for run in range(WARM_RUNS + runs):
        whole.append(timed(request.infer))
        profiled.append(timed(counted.infer))
        if run >= WARM_RUNS:
            samples.append(counted.get_profiling_info())
    graph = _graph(model)
    names = distinct([one.node_name for one in samples[0]])
    operators = []
    for position, name in enumerate(names):
        told = [infos[position] for infos in samples]
        # What was merged into another node, and constants, are not executed.
        if all(one.status.name != "EXECUTED" for one in told):
            continue
        kind, inputs, outputs = graph.get(told[0].node_name, (told[0].node_type, (), ()))
        operators.append(
            Operator(
                name=name,
                type=kind,
                inputs=inputs,
                outputs=outputs,
                samples_ms=tuple(one.real_time.total_seconds() * 1000 for one in told),
            )
        )
    return Profile(
        operators=tuple(operators),
        whole_ms=tuple(whole[WARM_RUNS:]),
        profiled_ms=tuple(profiled[WARM_RUNS:]),
        method="OpenVINO's performance counters, in whole microseconds",
        resolution_ms=0.001,
    )


def _graph(model: Any) -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Type, inputs and outputs of each executed node; tensors go by the names of the file's nodes."""
    found = {}
    for node in model.get_runtime_model().get_ordered_ops():
        told = node.get_rt_info()
        kind, merged = (told[key].astype(str) if key in told else "" for key in ("layerType", "originalLayersNames"))
        name = node.get_friendly_name()
        inputs = tuple(one.get_node().get_friendly_name() for one in node.input_values())
        found[name] = (kind, inputs, tuple(dict.fromkeys((name, *filter(None, merged.split(","))))))
    return found

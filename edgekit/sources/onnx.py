"""An ``.onnx`` file as a model: read, brought over operator by operator, and proved against ONNX Runtime.

The network is in ``onnx_network.py``, the rule of each operator in ``onnx_rules.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import edgekit.sources.onnx_rules  # noqa: F401  registers the rules
from edgekit.errors import SourceError
from edgekit.sources.onnx_network import OnnxNetwork

# Beyond this, relative to the largest output, the rules and ONNX Runtime compute different networks.
_TOLERANCE = 1e-3
_PROOF_INPUTS = 4


def load_onnx(path: Path, input_shape: Sequence[int] | None) -> tuple[OnnxNetwork, tuple[int, ...]]:
    """The network of a file and the shape of one input.

    Args:
        path: The ``.onnx`` file.
        input_shape: Without the batch, where the file leaves it open.

    Raises:
        SourceError: If the file is missing, damaged, or has more than one input or output.
        UnsupportedOperatorError: If an operator can't be brought over.
    """
    import onnx

    if not path.is_file():
        raise SourceError(f"{path} does not exist or is no file", "Check the path.")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        raise SourceError(
            f"{path} is damaged or no ONNX model: {str(error).strip().splitlines()[0]}", "Export it again."
        ) from error
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise SourceError(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs",
            "edgekit takes networks with one of each.",
        )
    sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in inputs[0].type.tensor_type.shape.dim]
    shape = tuple(input_shape) if input_shape else tuple(sizes[1:])
    if not shape or any(size < 1 for size in shape):
        raise SourceError(f"{path} leaves its input shape open: {sizes}", "Set --input-shape, for example 3,224,224.")
    return OnnxNetwork(model, str(path)).eval(), shape


def prove(network: nn.Module, path: Path, shape: tuple[int, ...]) -> float:
    """Runs the file in ONNX Runtime, in a child process, and the network beside it.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        SourceError: If they differ by more than rounding, or the file can't be run.
    """
    from edgekit.errors import ExecutionError
    from edgekit.runtimes.runtime import Options
    from edgekit.runtimes.targets.target import target_for

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_PROOF_INPUTS, *shape, generator=generator)
    with torch.no_grad():
        wanted = network(inputs).numpy()
    try:
        with target_for("local") as target, target.worker() as worker:
            worker.open(path, "onnxruntime", Options())
            # One at a time: the file may be fixed to a batch of one.
            found = np.concatenate([worker.run(x[None].numpy())[0] for x in inputs])
    except ExecutionError as error:
        raise SourceError(f"ONNX Runtime can't run {path}: {error.what}", "Export it again.") from error
    difference = float(np.abs(found.reshape(wanted.shape) - wanted).max() / max(1e-6, float(np.abs(found).max())))
    if not difference <= _TOLERANCE:
        raise SourceError(
            f"{path} was brought over wrongly: outputs differ from ONNX Runtime's by {difference:.2g} of the largest",
            "This is a bug of edgekit; please report the model. A PyTorch factory is the way around it.",
        )
    return difference

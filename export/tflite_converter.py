"""The TFLite export's part in processes of its own: litert-torch is native code, brings jax along, and prints."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_SLOW = (
    "litert_torch", "litert_torch.quantize.pt2e_quantizer", "litert_torch.quantize.quant_config", "scipy.sparse",
    "torch._dynamo", "torch.export",
)  # fmt: skip


def preload() -> None:
    """Imports what a conversion needs: most of the time of a small one."""
    from edgekit import program as programs

    with programs.quiet():
        for name in _SLOW:
            importlib.import_module(name)


def convert(source: str, target: str, int8: bool) -> None:
    """Converts a program to TFLite with batch 1, and NHWC input if it takes images.

    Args:
        source: A ``.pt2`` with one input and a free batch dimension.
        target: The ``.tflite`` to write.
        int8: The program holds quantize/dequantize nodes that are to become integer operators.
    """
    import torch

    from edgekit import program as programs
    from edgekit.pt2 import load_pt2

    module = programs.trainable(load_pt2(Path(source)))
    shape = programs.shape_of(programs.input_node(module))[1:]
    with programs.quiet():
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig

    class ChannelsLast(torch.nn.Module):
        """Takes NHWC, as the device's camera gives it; the converter cancels the transposes against its own."""

        def __init__(self, inner: torch.fx.GraphModule) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x.permute(0, 3, 1, 2))

    wrapped: torch.nn.Module = ChannelsLast(module) if len(shape) == 3 else module
    example = torch.zeros(1, *(shape[1], shape[2], shape[0]) if len(shape) == 3 else shape)
    settings: dict[str, Any] = {}
    if int8:
        # Only switches the converter to reading Q/DQ; the scales are those in the program.
        quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
        settings["quant_config"] = QuantConfig(pt2e_quantizer=quantizer)
    with programs.quiet():
        converted = litert_torch.convert(wrapped.eval(), (example,), **settings)
        converted.export(target)

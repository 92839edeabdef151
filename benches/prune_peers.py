"""ResNet-56 as other toolkits' pruners of channels cut it.

``torch_pruning`` is called in this environment (``pip install --no-deps torch-pruning==1.6.0``), NNCF in one of its own
(``nncf_filters.py``). Both give a bundle that the bench trains and evaluates as it does ours.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nncf_filters
import numpy as np
import torch

from edgekit import zoo
from edgekit.bundle import Bundle
from edgekit.program import export_program
from edgekit.sources.weights import load_weights_into


def torch_pruning(original: Bundle, weights: Path, goal: float) -> Bundle:
    """The same network cut by Torch-Pruning to the share of MACs, in small steps until it is reached."""
    import torch_pruning

    module = _network(weights)
    x = torch.zeros(1, *original.input_shape)
    stages: Any = (module.layer1, module.layer2, module.layer3)
    streams = [module.conv1, module.linear, *(block.conv2 for stage in stages for block in stage)]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        x,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.9,
        max_pruning_ratio=0.9,
        iterative_steps=400,
        ignored_layers=streams,
    )
    whole = _macs(module, x)
    while _macs(module, x) > goal * whole:
        pruner.step()
    return _bundle(original, module)


def nncf(original: Bundle, weights: Path, goal: float, ranking: str, python: str) -> Bundle:
    """The same network without the filters that NNCF sets to zero; ``python`` is of the environment that has NNCF 2.19."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kept.npz"
        # Run in the folder, as NNCF draws its graphs to where it runs.
        command = [
            python,
            str(Path(nncf_filters.__file__).resolve()),
            str(weights.resolve()),
            str(goal),
            ranking,
            str(output),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[2]), "NNCF_TORCH_LEGACY_TRACING": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
        if done.returncode:
            raise SystemExit(f"NNCF failed: {done.stderr[-500:]}")
        found = dict(np.load(output))
    x, y = (torch.from_numpy(found.pop(name)) for name in "xy")
    module = _network(weights)
    for name, kept in found.items():
        block, _, layer = name.rpartition(".")
        assert layer == "conv1", f"NNCF cuts {name}, which runs through the blocks"
        _keep(module.get_submodule(block), torch.from_numpy(kept))
    with torch.no_grad():
        torch.testing.assert_close(module(x), y, rtol=1e-3, atol=1e-3)  # cut as it was masked
    return _bundle(original, module)


def _keep(block: Any, kept: torch.Tensor) -> None:
    """A block with only these filters of its first convolution."""
    for layer, name in ((block.conv1, "weight"), (block.bn1, "weight"), (block.bn1, "bias")):
        setattr(layer, name, torch.nn.Parameter(getattr(layer, name).detach()[kept]))
    block.bn1.running_mean, block.bn1.running_var = block.bn1.running_mean[kept], block.bn1.running_var[kept]
    block.conv2.weight = torch.nn.Parameter(block.conv2.weight.detach()[:, kept])
    block.conv1.out_channels = block.bn1.num_features = block.conv2.in_channels = len(kept)


def _network(weights: Path) -> Any:
    module, _ = zoo.build("resnet56-cifar")
    load_weights_into(module, weights)
    return module.eval()


def _bundle(original: Bundle, module: torch.nn.Module) -> Bundle:
    return replace(original, program=export_program(module, original.input_shape), samples=None, path=None)


def _macs(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Of convolutions and linear layers, counted as they run: for hundreds of small steps quicker than by an export."""
    found = []
    layers = [layer for layer in module.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    handles = [
        layer.register_forward_hook(
            lambda layer, _, y: found.append(y.numel() // len(layer.weight) * layer.weight.numel())
        )
        for layer in layers
    ]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return sum(found)

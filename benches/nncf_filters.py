"""Which filters of ResNet-56 NNCF's filter pruning keeps; run by the Python of an environment of its own.

    python -m venv nncf2 && nncf2/bin/pip install nncf==2.19.0 torch==2.13.0 safetensors
    PYTHONPATH=. NNCF_TORCH_LEGACY_TRACING=1 nncf2/bin/python benches/nncf_filters.py WEIGHTS GOAL RANKING OUTPUT.npz

2.19 is the last version that has it (3.0 took it out). GOAL is the share of MACs that is left. RANKING is ``uniform`` (every
layer loses the same share, chosen by the geometric median; what is kept are multiples of eight, so
more is cut than asked) or ``global`` (all layers ranked together, by L2). NNCF sets filters to zero and cuts nothing; OUTPUT
holds the kept filters of each convolution that it touches, and ``x`` and ``y``, the masked network's input and output, for a
check of the cut.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("NNCF_CI", "1")  # sends no usage statistics

import numpy as np
import torch

from edgekit import zoo
from edgekit.sources.weights import load_weights_into

RANKINGS = {
    "uniform": {"filter_importance": "geometric_median", "all_weights": False},
    "global": {"filter_importance": "L2", "all_weights": True},
}


def main() -> None:
    """Masks the network and writes what is left of it."""
    weights, goal, ranking, output = sys.argv[1:5]
    from nncf import NNCFConfig
    from nncf.torch import create_compressed_model

    module, _ = zoo.build("resnet56-cifar")
    load_weights_into(module, Path(weights))
    module.eval()
    pruned = 1 - float(goal)
    settings = {
        "algorithm": "filter_pruning",
        "pruning_init": pruned,
        "params": {
            "schedule": "exponential",
            "pruning_flops_target": pruned,
            "num_init_steps": 0,
            "pruning_steps": 1,
            "prune_downsample_convs": True,
            **RANKINGS[ranking],
        },
    }
    config = NNCFConfig.from_dict({"input_info": {"sample_size": [1, 3, 32, 32]}, "compression": settings})
    controller, masked = create_compressed_model(module, config)
    kept = {}
    for layer in controller.pruned_module_groups_info.get_all_nodes():
        # CifarResNet/Sequential[layer1]/Block[0]/NNCFConv2d[conv1]/conv2d_0 is layer1.0.conv1
        name = ".".join(part.split("[")[1].rstrip("]") for part in layer.node_name.split("/")[1:-1])
        kept[name] = layer.operand.binary_filter_pruning_mask.nonzero().flatten().numpy()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = masked.eval()(x)
    np.savez(output, x=x.numpy(), y=y.numpy(), **kept)


if __name__ == "__main__":
    main()

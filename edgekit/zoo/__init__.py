"""Reference networks by name: one family per file, one record per network.

``zoo:NAME`` on the command line, :func:`build` in Python. Only ``digits-cnn`` comes with weights; the others take them
with ``--weights``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import nn

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One network.

    Attributes:
        name: As typed after ``zoo:``.
        summary: One line.
        factory: ``module:function``, called with ``settings``.
        settings: Keyword arguments of the factory.
        input_shape: Shape of one input without the batch.
        preprocessing: Fields of Preprocessing; None when it depends on the weights.
        labels: Class names; None when they depend on the weights.
        weights: File beside this package, if it comes with any.
        paper: Where it was published.
    """

    name: str
    summary: str
    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...]
    preprocessing: Mapping[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    weights: str | None = None
    paper: str


def _cifar_resnet(depth: int) -> ZooEntry:
    return ZooEntry(
        name=f"resnet{depth}-cifar",
        summary=f"ResNet-{depth} for CIFAR with parameter-free shortcuts (option A)",
        factory="edgekit.zoo.resnet_cifar:resnet_cifar",
        settings={"depth": depth},
        input_shape=(3, 32, 32),
        preprocessing={"size": (32, 32), **_IMAGENET},
        labels=_CIFAR_LABELS,
        paper="He et al., CVPR 2016, section 4.2",
    )


def _imagenet(name: str, summary: str, factory: str, paper: str, **settings: Any) -> ZooEntry:
    return ZooEntry(
        name=name,
        summary=summary,
        factory=f"edgekit.zoo.{factory}",
        settings=settings,
        input_shape=(3, 224, 224),
        preprocessing={"size": (224, 224), **_IMAGENET},
        paper=paper,
    )


_ENTRIES = (
    ZooEntry(
        name="digits-cnn",
        summary="small residual CNN for 8×8 digits, trained",
        factory="edgekit.zoo.digits_cnn:DigitsCnn",
        input_shape=(1, 8, 8),
        preprocessing={"size": (8, 8), "color": "gray", "mean": (0.3,), "std": (0.35,)},
        labels=tuple(str(digit) for digit in range(10)),
        weights="digits_cnn.safetensors",
        paper="edgekit; trained by benches/train_digits.py",
    ),
    *(_cifar_resnet(depth) for depth in (20, 32, 44, 56)),
    _imagenet("googlenet", "GoogLeNet (Inception v1), 224", "googlenet:GoogLeNet", "Szegedy et al., CVPR 2015"),
    _imagenet("mobilenet-v1", "MobileNet V1 1.0, 224", "mobilenet_v1:MobileNetV1", "Howard et al., arXiv:1704.04861"),
    _imagenet("mobilenet-v2", "MobileNet V2 1.0, 224", "mobilenet_v2:MobileNetV2", "Sandler et al., CVPR 2018"),
    _imagenet("squeezenet-1.1", "SqueezeNet 1.1, 224", "squeezenet:SqueezeNet", "Iandola et al., arXiv:1602.07360"),
)
ENTRIES: Mapping[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every network by its name; tests run over all of them."""


def get(name: str) -> ZooEntry:
    """The record of a network.

    Raises:
        UnknownNameError: If there is none of this name.
    """
    if name not in ENTRIES:
        raise UnknownNameError("zoo network", name, ENTRIES)
    return ENTRIES[name]


def build(name: str) -> tuple[nn.Module, ZooEntry]:
    """A network in evaluation, with its own weights where it comes with any, else seeded random ones.

    Raises:
        UnknownNameError: If there is none of this name.
    """
    import torch

    entry = get(name)
    module, _, function = entry.factory.partition(":")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = getattr(importlib.import_module(module), function)(**entry.settings)
    if entry.weights is not None:
        from edgekit.sources.weights import load_weights_into

        load_weights_into(network, Path(__file__).parent / entry.weights)
    return network.eval(), entry

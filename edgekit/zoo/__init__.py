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
_DIGITS = tuple(str(digit) for digit in range(10))
_KEYWORDS = ("silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


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


def _cifar(name: str, summary: str, factory: str, paper: str, **settings: Any) -> ZooEntry:
    return ZooEntry(
        name=f"{name}-cifar",
        summary=summary,
        factory=f"edgekit.zoo.{factory}",
        settings=settings,
        input_shape=(3, 32, 32),
        preprocessing={"size": (32, 32), **_IMAGENET},
        labels=_CIFAR_LABELS,
        paper=paper,
    )


def _cifar_resnet(depth: int) -> ZooEntry:
    summary = f"ResNet-{depth} for CIFAR with parameter-free shortcuts (option A)"
    paper = "He et al., CVPR 2016, section 4.2"
    return _cifar(f"resnet{depth}", summary, "resnet_cifar:resnet_cifar", paper, depth=depth)


def _vgg(depth: int) -> tuple[ZooEntry, ...]:
    paper = "Simonyan and Zisserman, ICLR 2015"
    normed = f"{paper}; batch norm: Ioffe and Szegedy, ICML 2015"
    cifar = {"depth": depth, "batch_norm": True, "size": 32, "hidden": 512, "classes": 10}
    return (
        _imagenet(f"vgg{depth}", f"VGG-{depth}, 224", "vgg:Vgg", paper, depth=depth),
        _imagenet(
            f"vgg{depth}-bn", f"VGG-{depth} with batch norm, 224", "vgg:Vgg", normed, depth=depth, batch_norm=True
        ),
        _cifar(f"vgg{depth}", f"VGG-{depth} with batch norm for CIFAR", "vgg:Vgg", normed, **cifar),
    )


def _shufflenet_v1(groups: int) -> ZooEntry:
    summary = f"ShuffleNet V1 1×, groups of {groups}, 224" if groups > 1 else "ShuffleNet V1 1×, no groups, 224"
    factory = "shufflenet_v1:ShuffleNetV1"
    return _imagenet(f"shufflenet-v1-g{groups}", summary, factory, "Zhang et al., CVPR 2018", groups=groups)


def _shufflenet_v2(width: float) -> ZooEntry:
    factory = "shufflenet_v2:ShuffleNetV2"
    return _imagenet(
        f"shufflenet-v2-{width}", f"ShuffleNet V2 {width}×, 224", factory, "Ma et al., ECCV 2018", width=width
    )


def _keyword(name: str, summary: str, factory: str, shape: tuple[int, int], paper: str, **settings: Any) -> ZooEntry:
    return ZooEntry(
        name=f"keyword-{name}",
        summary=summary,
        factory=f"edgekit.zoo.{factory}",
        settings=settings,
        input_shape=shape,
        labels=_KEYWORDS,
        paper=paper,
    )


_ENTRIES = (
    ZooEntry(
        name="digits-cnn",
        summary="small residual CNN for 8×8 digits, trained",
        factory="edgekit.zoo.digits_cnn:DigitsCnn",
        input_shape=(1, 8, 8),
        preprocessing={"size": (8, 8), "color": "gray", "mean": (0.3,), "std": (0.35,)},
        labels=_DIGITS,
        weights="digits_cnn.safetensors",
        paper="edgekit; trained by benches/train_digits.py",
    ),
    ZooEntry(
        name="lenet5",
        summary="LeNet-5 for digits, 32",
        factory="edgekit.zoo.lenet:LeNet5",
        input_shape=(1, 32, 32),
        # Background -0.1, ink 1.175, as in the paper (section II.B).
        preprocessing={"size": (32, 32), "color": "gray", "mean": (0.0784,), "std": (0.7843,)},
        labels=_DIGITS,
        paper="LeCun et al., Proceedings of the IEEE, 1998",
    ),
    *(_cifar_resnet(depth) for depth in (20, 32, 44, 56)),
    _cifar("nin", "Network in Network for CIFAR", "nin:nin_cifar", "Lin, Chen and Yan, ICLR 2014"),
    _cifar(
        "mobilenet-v2", "MobileNet V2 for CIFAR", "mobilenet_v2:MobileNetV2", "after Sandler et al., CVPR 2018",
        classes=10, early_strides=(1, 1),
    ),
    _imagenet("alexnet", "AlexNet with its two groups, 224", "alexnet:AlexNet", "Krizhevsky et al., NIPS 2012"),
    _imagenet("nin", "Network in Network, 224", "nin:nin_imagenet", "Lin, Chen and Yan, ICLR 2014"),
    *_vgg(11),
    *_vgg(16),
    _imagenet("googlenet", "GoogLeNet (Inception v1), 224", "googlenet:GoogLeNet", "Szegedy et al., CVPR 2015"),
    _imagenet("resnet18", "ResNet-18, 224", "resnet:ResNet", "He et al., CVPR 2016", depth=18),
    _imagenet("resnet50", "ResNet-50 (v1.5), 224", "resnet:ResNet", "He et al., CVPR 2016", depth=50),
    _imagenet("densenet121", "DenseNet-121, 224", "densenet:DenseNet", "Huang et al., CVPR 2017"),
    ZooEntry(
        name="xception",
        summary="Xception, 299",
        factory="edgekit.zoo.xception:Xception",
        input_shape=(3, 299, 299),
        preprocessing={"size": (299, 299), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        paper="Chollet, CVPR 2017",
    ),
    *(
        _imagenet(
            f"squeezenet-{version}", f"SqueezeNet {version}, 224", "squeezenet:SqueezeNet",
            "Iandola et al., arXiv:1602.07360", version=version,
        )
        for version in ("1.0", "1.1")
    ),
    _imagenet("mobilenet-v1", "MobileNet V1 1.0, 224", "mobilenet_v1:MobileNetV1", "Howard et al., arXiv:1704.04861"),
    _imagenet("mobilenet-v2", "MobileNet V2 1.0, 224", "mobilenet_v2:MobileNetV2", "Sandler et al., CVPR 2018"),
    *(
        _imagenet(
            f"mobilenet-v3-{size}", f"MobileNet V3 {size}, 224", "mobilenet_v3:MobileNetV3", "Howard et al., ICCV 2019",
            size=size,
        )
        for size in ("small", "large")
    ),
    *(_shufflenet_v1(groups) for groups in (1, 2, 3, 4, 8)),
    *(_shufflenet_v2(width) for width in (0.5, 1.0, 1.5, 2.0)),
    _imagenet("ghostnet", "GhostNet 1.0, 224", "ghostnet:GhostNet", "Han et al., CVPR 2020"),
    _keyword(
        "lstm", "LSTM keyword spotter, 49 × 10 cepstral coefficients", "keyword_rnn:KeywordRnn", (49, 10),
        "Zhang et al., arXiv:1711.07128", kind="lstm", cells=118,
    ),
    _keyword(
        "gru", "GRU keyword spotter, 25 × 10 cepstral coefficients", "keyword_rnn:KeywordRnn", (25, 10),
        "Zhang et al., arXiv:1711.07128", kind="gru", cells=154,
    ),
    _keyword(
        "transformer", "Keyword Transformer KWT-1, 98 × 40 cepstral coefficients",
        "keyword_transformer:KeywordTransformer", (98, 40), "Berg, O'Connor and Cruz, Interspeech 2021",
    ),
)  # fmt: skip
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

    from edgekit.zoo.initialization import settle_statistics

    entry = get(name)
    module, _, function = entry.factory.partition(":")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = getattr(importlib.import_module(module), function)(**entry.settings)
        if entry.weights is None:
            settle_statistics(network, entry.input_shape)
    if entry.weights is not None:
        from edgekit.sources.weights import load_weights_into

        load_weights_into(network, Path(__file__).parent / entry.weights)
    return network.eval(), entry

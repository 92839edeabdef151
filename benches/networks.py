"""The real networks and images that the benches share, from ../shared/data; nothing of it is in this repository."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from progress import log
from torch import nn

from edgekit.bundle import Bundle
from edgekit.data.dataset import Dataset, Split, make_dataset
from edgekit.data.npz import encoded_split, read_npz
from edgekit.data.preprocessing import Preprocessing
from edgekit.data.references import load_data
from edgekit.program import export_program, trainable
from edgekit.sources.load import load
from edgekit.training import TrainingSettings, train
from edgekit.zoo import get
from edgekit.zoo.squeezenet import SqueezeNet
from edgekit.zoo.vgg import Vgg

IMAGENET_224 = Preprocessing(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="stretch")
# Where the eight fire modules stand in the zoo's SqueezeNet.
_FIRES = (3, 4, 6, 7, 9, 10, 11, 12)


def imagenet(shared: Path) -> Dataset:
    """1 000 ImageNet-like images: the even ones to calibrate (every fifth of them to validate), the odd ones to report."""
    path = shared / "sets" / "nips17_imagenet1k_299_q92.npz"
    whole = encoded_split(read_npz(path), path)
    even, odd = np.arange(0, len(whole), 2), np.arange(1, len(whole), 2)
    parts = [whole.part(indices) for indices in (even[np.arange(len(even)) % 5 != 0], even[::5], odd)]
    return make_dataset(str(path), [str(i) for i in range(1000)], parts[0], validation=parts[1], test=parts[2])


def cifar10_lossless(shared: Path) -> Dataset:
    """4 000 original CIFAR-10 images to calibrate and validate, 500 to report."""
    arrays = read_npz(shared / "sets" / "cifar10_lossless.npz")
    splits = [Split(arrays[f"{part}_x"], arrays[f"{part}_y"].reshape(-1)) for part in ("train", "test")]
    return make_dataset("cifar10_lossless", [str(i) for i in range(10)], splits[0], test=splits[1], overlap="drop")


def cifar_resnet(shared: Path, depth: int = 20) -> tuple[Bundle, Dataset]:
    """A trained ResNet, and CIFAR-10 as JPEG copies: 45 000 to train, 5 000 to validate, 5 000 to report."""
    data = load_data(f"cifar10:{shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    return load(f"zoo:resnet{depth}-cifar", weights=shared / "weights" / f"resnet{depth}_jpeg.safetensors"), data


def cifar_vgg(shared: Path, work: Path) -> tuple[Bundle, Dataset]:
    """VGG-11 with batch norm and half of its channels, trained here on the copies: nobody's weights were at hand.

    Ten epochs, a quarter of an hour on one core; killed, they go on. The epoch is chosen on the validation images.
    """
    data = load_data(f"cifar10:{shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    if (work / "bundle.json").is_file():
        return Bundle.load(work), data
    torch.manual_seed(0)
    network = Vgg(11, batch_norm=True, size=32, hidden=256, width=0.5, classes=10)
    shape, preprocessing = (3, 32, 32), Preprocessing(**(get("vgg11-cifar").preprocessing or {}))
    module = trainable(export_program(network, shape, origin="VGG-11 × 0.5"))
    settings = TrainingSettings(epochs=10, learning_rate=0.05, weight_decay=5e-4, precision="bfloat16")
    checkpoints = work.with_name(f"{work.name}.work")
    checkpoints.mkdir(parents=True, exist_ok=True)
    train(module, data, preprocessing, settings, checkpoint=checkpoints, progress=log)
    network.load_state_dict(module.state_dict())
    _bundle(network, shape, preprocessing, "VGG-11 × 0.5").save(work)
    return Bundle.load(work), data


def squeezenet(shared: Path) -> Bundle:
    """SqueezeNet 1.1 with its Caffe weights: BGR minus the means, 227×227."""
    arrays = np.load(shared / "weights" / "squeezenet1_1_fp32_converted.npz")
    names = {"conv1": "features.0", "conv10": "classifier"}
    for index, place in enumerate(_FIRES):
        for short, long in (("s", "squeeze"), ("e1", "expand1x1"), ("e3", "expand3x3")):
            names[f"f.{index}.{short}"] = f"features.{place}.{long}"
    network = SqueezeNet()
    network.load_state_dict(
        {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": torch.from_numpy(arrays[key]) for key in arrays}
    )
    preprocessing = Preprocessing(size=(227, 227), color="bgr", scale=1.0, mean=(104.0, 117.0, 123.0), resize="stretch")
    return _bundle(network, (3, 227, 227), preprocessing, "SqueezeNet 1.1")


class SameConv(nn.Module):
    """A convolution padded as TensorFlow's ``same``, batch norm if there is one, and an activation."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, groups: int = 1, *, relu: str, norm: bool
    ) -> None:
        super().__init__()
        # For even sizes and stride 2, TensorFlow pads right and below alone.
        self.pad = (0, 1, 0, 1) if stride == 2 and kernel == 3 else None
        padding = 0 if self.pad else kernel // 2
        self.c = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=not norm)
        self.b = nn.BatchNorm2d(channels, eps=1e-3) if norm else nn.Identity()
        self.activation = {"relu": F.relu, "relu6": F.relu6, "none": lambda x: x}[relu]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pad:
            x = F.pad(x, self.pad)
        return self.activation(self.b(self.c(x)))


class KerasMobileNetV1(nn.Module):
    """MobileNet V1 as Keras builds it: ReLU6, ``same`` padding."""

    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        layers = [SameConv(3, weights["0.c.weight"].shape[0], 3, 2, relu="relu6", norm=True)]
        for index in range(1, 27):
            out, inner = weights[f"{index}.c.weight"].shape[:2]
            depthwise = index % 2 == 1
            stride = self.STRIDES[index // 2] if depthwise else 1
            kernel = weights[f"{index}.c.weight"].shape[-1]
            groups = out if depthwise else 1
            layers.append(SameConv(inner * groups, out, kernel, stride, groups, relu="relu6", norm=True))
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(*reversed(weights["fc.weight"].shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((2, 3)))


def mobilenet_v1(shared: Path) -> Bundle:
    """MobileNet V1 0.25 with its Keras weights: x / 127.5 − 1, 224×224."""
    arrays = dict(np.load(shared / "weights" / "mobilenet_v1_0.25_224_fp32_converted.npz"))
    network = KerasMobileNetV1(arrays)
    network.load_state_dict(
        {key if key.startswith("fc") else f"layers.{key}": torch.from_numpy(value) for key, value in arrays.items()}
    )
    preprocessing = Preprocessing(size=(224, 224), scale=1 / 127.5, mean=(1.0,), resize="stretch")
    return _bundle(network, (3, 224, 224), preprocessing, "MobileNet V1 0.25")


class ResNet8(nn.Module):
    """The image classification network of MLPerf Tiny, its batch norms folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 16, 3, 1, relu="relu", norm=False)
        widths = (16, 16, 32, 64)
        self.first, self.second, self.shortcut = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for before, after in itertools.pairwise(widths):
            stride = 1 if before == after else 2
            self.first.append(SameConv(before, after, 3, stride, relu="relu", norm=False))
            self.second.append(SameConv(after, after, 3, 1, relu="none", norm=False))
            same = before == after
            self.shortcut.append(nn.Identity() if same else SameConv(before, after, 1, 2, relu="none", norm=False))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for first, second, shortcut in zip(self.first, self.second, self.shortcut, strict=True):
            x = F.relu(second(first(x)) + shortcut(x))
        return self.fc(x.mean((2, 3)))


def resnet8(shared: Path) -> Bundle:
    """ResNet-8 with the weights of its float TFLite file; the input is raw, 0 to 255."""
    network = ResNet8()
    found = _tflite_layers(shared / "weights" / "pretrainedResnet.tflite")
    # The order in which the file computes; the shortcut's convolution is the 1×1 one.
    blocks = [network.stem.c]
    for first, second, shortcut in zip(network.first, network.second, network.shortcut, strict=True):
        blocks += [first.c, second.c, *([shortcut.c] if isinstance(shortcut, SameConv) else [])]
    waiting = [*blocks, network.fc]
    for weight, bias in found:
        index = next(i for i, layer in enumerate(waiting) if layer.weight.shape == weight.shape)
        layer = waiting.pop(index)
        layer.weight.data, layer.bias.data = weight, bias
    assert not waiting
    preprocessing = Preprocessing(size=(32, 32), scale=1.0)
    return _bundle(network, (3, 32, 32), preprocessing, "ResNet-8 (MLPerf Tiny)")


def _tflite_layers(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of every convolution and dense layer of a float file, in order, in torch's layout."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]

    def constant(index: int) -> np.ndarray:
        tensor = graph.tensors[index]
        data = bytes(bytearray(model.buffers[tensor.buffer].data))
        return np.frombuffer(data, np.float32).reshape(tensor.shape).copy()

    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        if kind in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED):
            weight, bias = constant(operator.inputs[1]), constant(operator.inputs[2])
            weight = weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight
            found.append((torch.from_numpy(np.ascontiguousarray(weight)), torch.from_numpy(bias)))
    return found


def _bundle(network: nn.Module, shape: tuple[int, ...], preprocessing: Preprocessing, name: str) -> Bundle:
    return Bundle(export_program(network.eval(), shape, origin=name), shape, preprocessing, source={"reference": name})


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a shortcut."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels = 4 * width
        self.body = nn.Sequential(
            *self._norm(channels_in, width, 1, 1), nn.ReLU(), *self._norm(width, width, 3, stride), nn.ReLU(),
            *self._norm(width, channels, 1, 1),
        )  # fmt: skip
        same = channels_in == channels and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*self._norm(channels_in, channels, 1, stride))

    @staticmethod
    def _norm(channels_in: int, channels: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
        return convolution, nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet50() -> Bundle:
    """ResNet-50 (He et al., CVPR 2016, table 1) with random weights: for times alone."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    channels = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(channels, width, stride if index == 0 else 1))
            channels = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    return _bundle(_settled(network), (3, 224, 224), IMAGENET_224, "ResNet-50, random weights")


def _settled(network: nn.Module) -> nn.Module:
    """Random weights with batch-norm statistics of random images, so that no layer's output dies out."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    return network.eval()


def mobilenet_v2() -> Bundle:
    """MobileNet V2 of the zoo with random weights: for times alone."""
    from edgekit.zoo import build

    network, _ = build("mobilenet-v2")
    return _bundle(_settled(network), (3, 224, 224), IMAGENET_224, "MobileNet V2, random weights")

"""Every kind of graph, cut by 30 and 60 percent: smaller in fact, and the same function in all three formats."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit import zoo
from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.cost import cost_of
from edgekit.program import export_program
from edgekit.testing import families, networks

# A smaller input than the network is made for, where it takes one: the graph is the same.
ZOO = {"digits-cnn": None, "resnet20-cifar": None, "mobilenet-v1": 64, "mobilenet-v2": 64, "squeezenet-1.1": 64}

SHUFFLED = "shufflenet-v1"


def _bundle(name: str) -> Bundle:
    if name in networks.FEATURES:
        module, shape = networks.make(name), networks.INPUT_SHAPE
    else:
        torch.manual_seed(0)
        module, entry = zoo.build(name)
        for parameter in module.parameters() if entry.weights is None else ():
            if parameter.dim() > 1:  # torch's own beginning lets the signal die out on the way
                torch.nn.init.kaiming_normal_(parameter)
        size = ZOO[name]
        shape = (entry.input_shape[0], size, size) if size else tuple(entry.input_shape)
    bundle = Bundle(export_program(module, shape), tuple(shape))
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(16, shape[0], 4, 4, generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear").numpy()
    return bundle.with_samples(x, np.zeros(len(x), np.int64))


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("name", [*networks.FEATURES, *ZOO])
def test_cut_networks_are_smaller_and_right_in_every_format(name: str, share: float, tmp_path: Path) -> None:
    _cut(_bundle(name), share, tmp_path / name)


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_every_family_of_the_zoo_is_cut_and_right_in_every_format(share: float, tmp_path: Path) -> None:
    """Side by side in one network: each of them is smaller, and none hides a wrong output behind the others."""
    # By itself: its channels go nine at a time, and rank behind all that go one by one.
    shuffled = families.bundle({SHUFFLED: families.IMAGES[SHUFFLED]}, (3, 64, 64))
    others = {name: made for name, made in families.IMAGES.items() if name != SHUFFLED}
    images = families.bundle(others, (3, 64, 64))
    # Ranked together, at first the transformer alone would lose channels: each sequence family loses the same share.
    for before, scope in ((images, "global"), (shuffled, "global"), (families.sequences(), "layer")):
        was = _parameters(before)
        now = _parameters(_cut(before, share, tmp_path / "-".join(was), scope))
        assert [name for name in was if now[name] >= was[name]] == []


def _parameters(bundle: Bundle) -> dict[str, int]:
    """Of each family."""
    found: dict[str, int] = {}
    for name, value in bundle.module().named_parameters():
        family = name.split(".")[1]
        found[family] = found.get(family, 0) + value.numel()
    return found


def _cut(before: Bundle, share: float, path: Path, scope: str = "global") -> Bundle:
    """Cuts a network and looks at what is left: its size, its bundle, its exports."""
    small = compress(before, f"prune-channels:macs={share},multiple=1,epochs=0,scope={scope}")
    was, now = cost_of(before.module()), cost_of(small.module())
    assert now.macs <= share * was.macs
    assert now.parameters < was.parameters
    assert before.samples is not None
    small = small.with_samples(before.samples.inputs, before.samples.labels).save(path)
    # By the shapes that are left, the file holds the weights and nothing else.
    theory = sum(value.numel() * value.element_size() for value in small.program.state_dict.values())
    with zipfile.ZipFile(path / "program.pt2") as archive:
        stored = sum(
            e.file_size for e in archive.infolist() if "/weights/" in e.filename and not e.filename.endswith("json")
        )
    assert stored <= 1.1 * theory
    # Proved in each runtime: export fails where a file computes something else.
    for file in edgekit.export(small, ["onnx", "tflite", "ncnn"]):
        found = file.parity["agreement"]
        assert found["sqnr_db"] is None or found["sqnr_db"] > 80
    return small

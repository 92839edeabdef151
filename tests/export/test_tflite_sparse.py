"""XNNPACK's sparse kernels: what the rules say of a file, what is rewritten for them, and that ARM kernels follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.export import flatbuffer
from edgekit.export.run import export
from edgekit.export.tflite_sparse import SparsePath, sparse_path
from edgekit.program import export_program
from edgekit.runtimes.measure import Cell, Plan, measure
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets import instructions
from edgekit.runtimes.targets.target import target_for

# Wide at its end: 2 of 3 weights are the classifier's.
CLASSES = 400
POINTWISE = 4


class Chain(nn.Module):
    """What XNNPACK's sparse path asks for: 3×3 with stride 2 on 3 channels, depthwise and 1×1 with an addition, a mean."""

    def __init__(self, *, first_stride: int = 2, middle: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, first_stride, 1)
        self.spread = nn.Conv2d(16, 48, 1)
        self.deep = nn.Conv2d(48, 48, 3, 2, dilation, groups=48, dilation=dilation)
        self.mix = nn.Conv2d(48, 48, middle, padding=middle // 2)
        self.deeper = nn.Conv2d(48, 48, 5, 1, 2, groups=48)
        self.again = nn.Conv2d(48, 48, 1)
        self.last = nn.Conv2d(48, 64, 1)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.spread(nn.functional.relu6(self.first(x))))))
        x = self.mix(x)
        x = x + self.again(torch.relu(self.deeper(x)))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


def _bundle(sparsity: float, keep: str = "first,deep,deeper,fc", **changes: int) -> Bundle:
    torch.manual_seed(3)
    shape = (3, 32, 32)
    bundle = Bundle(export_program(Chain(**changes), shape), shape)
    x = np.random.default_rng(0).standard_normal((8, *shape), dtype=np.float32)
    if sparsity:
        bundle = compress(bundle, f"prune-weights:sparsity={sparsity},scope=layer,epochs=0,keep=[{keep}]")
    return bundle.with_samples(x, np.zeros(8, np.int64))


def _exported(bundle: Bundle, folder: Path) -> tuple[Path, SparsePath, str]:
    (file,) = export(bundle, "tflite", output=folder)
    return file.path, sparse_path(file.path.read_bytes()), "; ".join(file.parity["lowering"])


def test_a_chain_of_enough_zeros_is_told_to_be_sparse_on_arm_and_proved_here(tmp_path: Path) -> None:
    _, found, said = _exported(_bundle(0.8), tmp_path)
    assert (len(found.layers), found.dense, found.obstacles) == (POINTWISE, (), ())
    assert found.zeros == pytest.approx(0.8, abs=0.01)
    assert "4 of 4 1×1 convolutions by its sparse kernels on ARM" in said
    assert "no faster there" in said


def test_a_dense_classifier_does_not_count_for_it_is_set_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found, _ = _exported(_bundle(0.8), tmp_path / "apart")
    assert len(found.layers) == POINTWISE
    monkeypatch.setattr(flatbuffer, "_separate_classifier", lambda *_: None)
    whole, without, said = _exported(_bundle(0.8), tmp_path / "whole")
    assert without.layers == ()
    assert without.zeros < 0.4
    assert "must be" in said
    # The RESHAPE in between changes no bit.
    x = np.random.default_rng(1).standard_normal((1, 32, 32, 3), dtype=np.float32)
    outputs = []
    with target_for("local") as target:
        for file in (path, whole):
            with target.worker() as worker:
                worker.open(file, "tflite", Options())
                outputs.append(worker.run(x.transpose(0, 3, 1, 2))[0])
    np.testing.assert_array_equal(*outputs)


def test_a_classifier_without_zeros_of_its_own_stays_where_it_is_sparse_too(tmp_path: Path) -> None:
    _, found, _ = _exported(_bundle(0.8, keep="first,deep,deeper"), tmp_path)
    assert len(found.layers) == POINTWISE
    assert found.zeros == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("sparsity", "changes", "reason"),
    [
        (0.6, {}, "60% of the weights that count are zeros"),
        (0.8, {"first_stride": 1}, "only the first, 3×3 with stride 2"),
        (0.8, {"middle": 3}, "a 3×3 convolution with stride 1 on 48 channels is dense"),
        (0.8, {"dilation": 2}, "a depthwise convolution must be 3×3 with padding 1"),
    ],
)
def test_what_stands_in_the_way_is_named(sparsity: float, changes: dict[str, int], reason: str, tmp_path: Path) -> None:
    _, found, said = _exported(_bundle(sparsity, **changes), tmp_path)
    assert found.layers == ()
    assert reason in "; ".join(found.obstacles)
    assert "stand in the way" in said
    assert reason in said


def test_a_dense_file_says_nothing_of_it(tmp_path: Path) -> None:
    _, found, said = _exported(_bundle(0.0), tmp_path)
    assert found.stored == 0
    assert "sparse" not in said


@pytest.mark.targets
@pytest.mark.usefixtures("emulated_root")
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_arm_kernels_multiply_by_what_is_not_zero_and_give_the_same(cpu: str, tmp_path: Path) -> None:
    """The rules are XNNPACK's own as it stands: the real library is asked, with and without what they promise."""
    paths = {
        "dense": _exported(_bundle(0.0), tmp_path / "dense")[0],
        "sparse": _exported(_bundle(0.8), tmp_path / "sparse")[0],
        "too few zeros": _exported(_bundle(0.6), tmp_path / "few")[0],
    }
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32), dtype=np.float32)
    cells = [Cell(label=name, path=path, runtime="tflite") for name, path in paths.items()]
    target = target_for(f"emulated:{cpu}")
    counted = {}
    for found in measure(cells, [x] * len(cells), target, Plan()):
        assert found.error == ""
        counted[found.cell.label] = instructions.mean(found.instructions)["neon_float"]
    assert counted["sparse"] < 0.6 * counted["dense"]
    assert counted["too few zeros"] == pytest.approx(counted["dense"], rel=0.02)
    outputs = []
    for place in (target_for("local"), target):
        with place.worker() as worker:
            worker.open(paths["sparse"], "tflite", Options())
            outputs.append(worker.run(x)[0])
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)

"""Students: every mix meets its goal, the best is chosen and taught, a killed search goes on, and all formats take them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.compact import latency
from edgekit.compress.compact import student as students
from edgekit.compress.compact.assemble import Parts, assemble, mixes
from edgekit.compress.compact.blocks import find_blocks
from edgekit.compress.compact.depth import removal_order
from edgekit.compress.compact.judge import Judge, divergence
from edgekit.compress.compact.replacement import KINDS, offers
from edgekit.compress.pipeline import compress
from edgekit.compress.prune import channels
from edgekit.compress.prune.channels import PruneChannels
from edgekit.compress.step import Context
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.export.exporter import EXPORTERS
from edgekit.export.run import export
from edgekit.program import export_program
from edgekit.runtimes.comparison import Comparison
from edgekit.testing import networks
from edgekit.testing.clocks import Fours, KnownStopwatch

QUICK = "images=128,trial=0,epochs=0"


class Vgg(nn.Module):
    """A plain network with two layers of a width, a 5×5 kernel and a 7×7 kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.conv1 = nn.Conv2d(3, 16, 7, padding=3), nn.Conv2d(16, 16, 3, padding=1)
        self.conv2, self.conv3 = nn.Conv2d(16, 24, 5, padding=2), nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(F.relu(self.wide(x)))), 2)
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """A stem and two residual blocks of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))
        self.head = nn.Linear(16, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        for i in (0, 2):
            y = F.relu(self.norms[i](self.convs[i](x)))
            x = F.relu(x + self.norms[i + 1](self.convs[i + 1](y)))
        return self.head(x.mean((2, 3)))


def _parts(network: str, **settings: Any) -> Parts:
    bundle = Bundle(export_program(networks.make(network), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    module, x = bundle.module(), networks.images(48)
    return Parts(
        teacher=bundle,
        blocks=removal_order(module, find_blocks(module), x.split(16)),
        offers=offers(module, tuple(KINDS), **settings)[0],
        pruning=PruneChannels(macs=0.5, multiple=1, epochs=0),
        batches=None,
        images=x.numpy(),
        seed=0,
    )


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.FEATURES, "vgg", Vgg)
    monkeypatch.setitem(networks.FEATURES, "two-blocks", Residual)


@pytest.mark.parametrize(("network", "share"), [("vgg", 0.6), ("two-blocks", 0.5)])
def test_every_mix_meets_the_goal_and_is_near_its_teacher(network: str, share: float) -> None:
    parts = _parts(network)
    whole = cost_of(parts.teacher.module()).macs
    x = torch.from_numpy(parts.images)
    with torch.no_grad():
        wanted = parts.teacher.module()(x)
    seen = []
    for mix in mixes(("width", "replace", "depth")):
        student = assemble(parts, mix, share, "macs", fit=True)
        plain = assemble(parts, mix, share, "macs", fit=False)
        assert student.cost.macs == plain.cost.macs <= share * whole
        seen.append(student.mix)
        with torch.no_grad():
            fitted, unfitted = (divergence(wanted, s.module(x)) for s in (student, plain))
        assert fitted < unfitted
    assert cost_of(parts.teacher.with_module(student.module).module()).macs == student.cost.macs
    assert {("depth",), ("replace",), ("width",), ("depth", "width")} <= set(seen)


@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize(("network", "share"), [("vgg", 0.5), ("two-blocks", 0.25)])
def test_all_ways_at_once_in_every_format(network: str, share: float, name: str, tmp_path: Path) -> None:
    parts = _parts(network, multiplier=2 if network == "two-blocks" else 1)
    student = assemble(parts, ("depth", "replace", "width"), share, "macs", fit=True)
    assert student.mix == ("depth", "replace", "width")
    if network == "vgg":
        assert {row.kind for row in student.replaced} & {"two-3x3", "spatial"}
    bundle = parts.teacher.with_module(student.module).with_samples(parts.images[:16], np.zeros(16, np.int64))
    (file,) = export(bundle, name, output=tmp_path)
    assert file.parity["agreement"]["top1_percent"] == 100


def test_a_student_of_the_digits_keeps_what_its_teacher_knows(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    small = compress(before, "student:macs=0.5,ways=[replace,width],images=128,trial=128,epochs=2,multiple=4", data)
    report = small.steps[-1]["report"]
    assert report["macs"]["ratio"] <= 0.5
    tried = {key: row for key, row in report["candidates"].items() if "trial" in row}
    assert set(tried) == {"replace", "width", "replace+width"}
    nearest = min(tried, key=lambda key: tried[key]["trial"]["divergence"])
    assert report["chosen"] == nearest
    assert report["finetune"]["best_validation_top1"] > 97
    judge = Judge(before, data.validation, 1000)
    assert judge(small.module()).agreement > 97
    assert all("layers" not in row for row in tried.values())
    assert json.dumps(report)
    files = export(small, list(EXPORTERS), output=tmp_path)
    assert {file.path.suffix for file in files} == {".onnx", ".tflite", ".param"}


def test_a_goal_in_parameters(before: Bundle, data: Dataset) -> None:
    small = compress(before, f"student:parameters=0.4,ways=[width,replace],{QUICK}", data)
    assert small.steps[-1]["report"]["parameters"]["ratio"] <= 0.42


@pytest.mark.parametrize(("network", "share"), [("vgg", 0.6), ("two-blocks", 0.5)])
def test_every_mix_meets_a_goal_in_bytes(network: str, share: float) -> None:
    parts = replace(_parts(network), pruning=PruneChannels(size=0.5, multiple=1, epochs=0))
    stored = [sum(tensor.nbytes for tensor in parts.teacher.program.state_dict.values())]
    seen = []
    for mix in mixes(("width", "replace", "depth")):
        student = assemble(parts, mix, share, "bytes", fit=False)
        seen.append(student.mix)
        small = parts.teacher.with_module(student.module)
        stored = [*stored[:1], sum(tensor.nbytes for tensor in small.program.state_dict.values())]
        assert stored[1] / stored[0] <= share + 0.03  # num_batches_tracked among them
        assert student.cost.bytes <= (share + 0.02) * cost_of(parts.teacher.module()).bytes
    assert {("depth",), ("replace",), ("width",), ("depth", "width")} <= set(seen)


def test_a_goal_in_bytes(before: Bundle, data: Dataset) -> None:
    small = compress(before, f"student:size=0.4,ways=[width,replace],{QUICK}", data)
    figures = small.steps[-1]["report"]["bytes"]
    assert figures["ratio"] <= 0.42
    assert figures["after"] == cost_of(small.module()).bytes


def test_a_student_may_learn_by_any_method(before: Bundle, data: Dataset) -> None:
    settings = "images=128,trial=0,epochs=1,distill=[method=attention]"
    small = compress(before, f"student:macs=0.5,ways=[width],{settings}", data)
    assert small.steps[-1]["distill"]["method"] == "attention"
    assert small.steps[-1]["report"]["finetune"]["distill"]["looked_into"]


class KnownClock(KnownStopwatch):
    """A fixed part of the time, one that goes with the MACs, and one for each operator; counts how often it is asked."""

    asked = 0

    def time(self, bundle: Bundle) -> float:
        cost = cost_of(bundle.module())
        return 0.2 + cost.macs / cost_of(self._original.module()).macs + 0.02 * len(cost.layers)

    def ratios(self, bundles: Iterable[Bundle]) -> list[Comparison]:
        listed = list(bundles)
        KnownClock.asked += len(listed)
        return super().ratios(listed)


def test_a_goal_in_latency_is_met_by_each_mix_or_refused(
    before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "Stopwatch", KnownClock)
    KnownClock.asked = 0
    small = compress(before, f"student:latency=0.7@onnx,ways=[depth,width],multiple=4,{QUICK}", data)
    report = small.steps[-1]["report"]
    met = {key: row for key, row in report["candidates"].items() if "latency" in row}
    assert report["chosen"] in met
    assert all(row["latency"]["ratio"] <= 0.7 for row in met.values())
    (ratio,) = [c.ratio for c in KnownClock(before, "onnx").ratios([small])]
    assert ratio == pytest.approx(met[report["chosen"]]["latency"]["ratio"])
    trials = sum(len(row["trials"]) for row in report["candidates"].values())
    assert KnownClock.asked - 1 < trials, "the same network was measured twice"
    with pytest.raises(StepError, match="no student meets the goal"):
        compress(before, f"student:latency=0.05@onnx,ways=[replace],{QUICK}", data)


def test_what_the_clock_chose_is_kept_when_the_search_is_killed(
    before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(students, "Stopwatch", KnownClock)
    step = f"student:latency=0.7@onnx,ways=[replace,width],multiple=4,{QUICK}"
    whole = compress(before, step, data, output=tmp_path / "whole")

    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("student") and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(before, step, data, output=tmp_path / "again", progress=stop)
    KnownClock.asked = 0
    again = compress(before, step, data, output=tmp_path / "again")
    assert KnownClock.asked == 0
    assert again.fingerprint == whole.fingerprint


def test_channels_are_cut_on_the_grid_that_the_runtime_likes(
    before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "Stopwatch", Fours)
    small = compress(before, f"student:macs=0.6,ways=[width],align=onnx,{QUICK}", data)
    report = small.steps[-1]["report"]
    assert report["multiple"] == 4
    assert {grid["multiple"]: grid["ratio"] for grid in report["grids"]}[1] > 1
    widths = [layer.output_shape[1] for layer in cost_of(small.module()).layers if layer.macs][:-1]
    assert widths
    assert all(width % 4 == 0 for width in widths)


def test_the_real_clock_is_asked(before: Bundle, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_TRIALS", 1)
    small = compress(before, f"student:latency=0.95@onnx,ways=[replace],{QUICK}", data)
    (trial,) = small.steps[-1]["report"]["candidates"]["replace"]["trials"]
    assert 0 < trial["low"] <= trial["ratio"] <= trial["high"]


def test_a_network_without_a_way_is_refused_with_the_reason(data: Dataset) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1))

    torch.manual_seed(0)
    bundle = Bundle(export_program(Flat(), (1, 8, 8)), (1, 8, 8))
    floats = replace(data, **{n: _floats(getattr(data, n)) for n in ("train", "validation", "test")})
    with pytest.raises(StepError, match=r"values of the same shape.*no convolution has a cheaper form"):
        compress(bundle, f"student:macs=0.5,ways=[depth,replace],{QUICK}", floats)
    with pytest.raises(StepError, match="no student meets the goal"):
        compress(bundle, f"student:macs=0.5,{QUICK}", floats)


def _floats(split: Any) -> Any:
    images = split.images(np.arange(len(split))).astype(np.float32).reshape(len(split), 1, 8, 8) / 255
    return type(split)(images, split.labels)


@pytest.mark.parametrize(
    "settings", ["", "macs=0.5,parameters=0.5", "macs=2", "latency=0.5", "macs=0.5,ways=[]", "macs=0.5,trial=-1"]
)
def test_settings_that_make_no_sense_are_refused(settings: str, before: Bundle) -> None:
    with pytest.raises(UsageError):
        compress(before, f"student:{settings}")


def test_divergence_is_that_of_numpy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 9, 5)) * 3
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (a, b))
    expected = float((p * np.log(p / q)).sum(1).mean())
    assert divergence(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-12)
    assert divergence(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-12)


def test_without_data_it_says_so(before: Bundle) -> None:
    with pytest.raises(UsageError, match="student"):
        students.MakeStudent(macs=0.5).apply(before, Context())

"""Fewer classes: the head is cut, the data set follows, and what comes after knows the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.program import export_program
from edgekit.testing import networks


def _logits(bundle: Bundle, data: Dataset, count: int = 200) -> np.ndarray:
    x, _ = next(data.validation.batches(bundle.preprocessing, count))
    with torch.no_grad():
        return np.asarray(bundle.module()(torch.from_numpy(x)))


def test_what_is_left_gives_the_outputs_of_the_whole(before: Bundle, data: Dataset) -> None:
    small = compress(before, "keep-classes:classes=[7,1,4]", data)
    assert small.labels == ("1", "4", "7")
    np.testing.assert_allclose(_logits(small, data), _logits(before, data)[:, [1, 4, 7]], rtol=1e-5, atol=1e-5)


def test_the_data_set_follows(before: Bundle, data: Dataset) -> None:
    seen = compress(before, "keep-classes:classes=[1,4,7]", data).view_of(data)
    assert seen.labels == ("1", "4", "7")
    wanted = np.flatnonzero(np.isin(data.test.labels, [1, 4, 7]))
    assert len(seen.test) == len(wanted)
    np.testing.assert_array_equal(np.array([1, 4, 7])[seen.test.labels], data.test.labels[wanted])
    np.testing.assert_array_equal(seen.test.images(np.arange(5)), data.test.images(wanted[:5]))
    assert before.view_of(data) is data


def test_other_is_the_log_of_the_sum_of_the_exponentials(before: Bundle, data: Dataset) -> None:
    small = compress(before, "keep-classes:classes=[2,7],other=true", data)
    assert small.labels == ("2", "7", "other")
    whole, few = _logits(before, data), _logits(small, data)
    np.testing.assert_allclose(few[:, :2], whole[:, [2, 7]], rtol=1e-5, atol=1e-5)
    goes = np.delete(whole, [2, 7], 1).astype(np.float64)
    exact = np.log(np.exp(goes).sum(1))
    explained = 1 - np.var(few[:, 2] - exact) / np.var(exact)
    assert explained > 0.6
    seen = small.view_of(data)
    assert len(seen.test) == len(data.test)
    assert evaluate(small.module(), seen.test, small.preprocessing).top1 > 90


def test_names_do_as_well_as_places(before: Bundle, data: Dataset) -> None:
    named = Bundle(
        before.program, before.input_shape, before.preprocessing, tuple(f"digit {label}" for label in before.labels)
    )
    assert compress(named, "keep-classes:classes=[digit 3,5]").labels == ("digit 3", "digit 5")
    with pytest.raises(UsageError, match="no class 'digit 12'"):
        compress(named, "keep-classes:classes=[digit 12,5]")


@pytest.mark.parametrize("settings", ["classes=[3]", "classes=[3,3]", "classes=[]"])
def test_settings_that_make_no_sense_are_refused(settings: str) -> None:
    with pytest.raises(UsageError):
        edgekit.compress(edgekit.load("zoo:digits-cnn"), f"keep-classes:{settings}")


def test_every_class_is_nothing_to_cut(before: Bundle) -> None:
    with pytest.raises(UsageError, match="all classes"):
        compress(before, f"keep-classes:classes=[{','.join(map(str, range(10)))}]")


def test_a_head_that_mixes_its_outputs_is_refused(data: Dataset) -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(self.head(self.conv(x).mean((2, 3))), 1)

    bundle = Bundle(export_program(Mixed(), networks.INPUT_SHAPE), networks.INPUT_SHAPE, labels=tuple("abcde"))
    with pytest.raises(StepError, match="head can't be cut"):
        compress(bundle, "keep-classes:classes=[a,b]")


def test_a_convolutional_head_is_cut_too() -> None:
    class Convolutional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.head(torch.relu(self.conv(x))))
            return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1).softmax(1)

    torch.manual_seed(0)
    bundle = Bundle(export_program(Convolutional(), networks.INPUT_SHAPE), networks.INPUT_SHAPE, labels=tuple("abcde"))
    small = compress(bundle, "keep-classes:classes=[b,d]")
    x = networks.images(4)
    with torch.no_grad():
        whole, few = bundle.module()(x)[:, [1, 3]], small.module()(x)
    torch.testing.assert_close(few, whole / whole.sum(1, keepdim=True))


def test_pruning_that_knows_the_classes_beats_pruning_that_does_not(before: Bundle, data: Dataset) -> None:
    keep = "keep-classes:classes=[4,7,9]"
    prune = "prune-channels:macs=0.08,multiple=1,floor=0,importance=lasso,epochs=0"
    aware, blind = compress(before, [keep, prune], data), compress(before, [prune, keep], data)
    seen = aware.view_of(data).validation
    ours, theirs = (evaluate(b.module(), seen, before.preprocessing).top1 for b in (aware, blind))
    assert cost_of(aware.module()).macs <= cost_of(blind.module()).macs * 1.02
    assert ours > theirs + 10


def test_a_criterion_that_cant_see_the_classes_says_so(before: Bundle, data: Dataset) -> None:
    keep, prune = "keep-classes:classes=[4,7,9]", "prune-channels:macs=0.5,multiple=1,epochs=0,importance="
    told = {}
    for steps in ([keep, prune + "l2"], [keep, prune + "fisher"], [prune + "l2", keep]):
        report = next(s for s in compress(before, steps, data).steps if s["step"] == "prune-channels")["report"]
        told[tuple(steps)] = [note for note in report.get("notes", []) if "which classes are kept" in note]
    assert [len(notes) for notes in told.values()] == [1, 0, 0]


def test_what_was_cut_is_exported_and_benched_on_its_classes(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    from edgekit.runtimes.comparison import LEAST_ROUNDS
    from edgekit.runtimes.measure import Plan

    small = compress(before, "keep-classes:classes=[3,5,8]", data, output=tmp_path / "three")
    (file,) = edgekit.export(small, "onnx", data=data)
    assert file.parity["data"]["images"] == int(np.isin(data.test.labels, [3, 5, 8]).sum())
    found = edgekit.bench([file.path], data=data, plan=Plan(rounds=LEAST_ROUNDS, runs=3, seconds=0.05))
    assert found.rows[0].accuracy is not None
    assert [row["label"] for row in found.rows[0].accuracy.per_class] == ["3", "5", "8"]

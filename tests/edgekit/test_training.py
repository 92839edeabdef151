"""The training loop: deterministic, resumable to the bit, and it learns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.data.references import load_data
from edgekit.errors import StepError
from edgekit.evaluation import evaluate
from edgekit.sources.load import load
from edgekit.training import LossModule, TrainingSettings, WithTerm, learning_rate, train

QUICK = TrainingSettings(epochs=2, learning_rate=0.02, batch_size=64)


def test_it_learns_from_nothing() -> None:
    from edgekit.program import export_program
    from edgekit.zoo.digits_cnn import DigitsCnn

    torch.manual_seed(0)
    data = load_data("digits")
    bundle = load("zoo:digits-cnn")
    fresh = Bundle(export_program(DigitsCnn(), (1, 8, 8)), (1, 8, 8), bundle.preprocessing)
    module = fresh.module()
    before = evaluate(module, data.validation, bundle.preprocessing).top1
    result = train(module, data, bundle.preprocessing, TrainingSettings(epochs=3, learning_rate=0.05))
    after = evaluate(module, data.validation, bundle.preprocessing).top1
    assert before < 40
    assert after > 90
    assert after == pytest.approx(result.best_validation_top1)
    losses = [epoch["train_loss"] for epoch in result.history]
    assert losses == sorted(losses, reverse=True)


def test_the_schedule_is_the_one_cycle_of_the_paper() -> None:
    settings = TrainingSettings(learning_rate=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 * 0.04)
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates.index(max(rates)) in (29, 30)
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_bfloat16_trains_as_float32_does_and_both_fit_into_one_process() -> None:
    """Batch norm learns its statistics in both; so near, two epochs are only if both train the same network."""
    data, bundle = load_data("digits"), load("zoo:digits-cnn")
    found = []
    for precision in ("float32", "bfloat16", "float32"):
        module = bundle.module()
        result = train(module, data, bundle.preprocessing, replace(QUICK, precision=precision))
        found.append((result.history[-1]["train_loss"], module.state_dict()))
    name = next(key for key in found[0][1] if key.endswith("running_mean"))
    before, (exact, half, again) = bundle.module().state_dict()[name], [state[name] for _, state in found]
    assert torch.equal(exact, again)
    assert float((half - exact).norm()) < 0.1 * float((exact - before).norm())
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)


def test_a_loss_with_parameters_and_a_term_of_the_weights() -> None:
    """They train along, and the training ends with the network alone."""
    data, bundle = load_data("digits"), load("zoo:digits-cnn")

    class Scaled(LossModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, module, x, y):  # type: ignore[no-untyped-def]
            outputs = module(x)
            return torch.nn.functional.cross_entropy(self.scale * outputs, y), outputs

    inner, module = Scaled(), bundle.module()
    calls: list[int] = []
    train(module, data, bundle.preprocessing, QUICK, loss=WithTerm(inner, lambda: calls.append(1)))
    assert float(inner.scale.detach()) != 2.0
    assert len(calls) == 2 * -(-len(data.train) // QUICK.batch_size)
    assert set(module.state_dict()) == set(bundle.module().state_dict())


def test_a_loss_that_is_not_finite_stops_with_a_remedy() -> None:
    data, bundle = load_data("digits"), load("zoo:digits-cnn")
    with pytest.raises(StepError, match="loss is") as caught:
        train(bundle.module(), data, bundle.preprocessing, TrainingSettings(epochs=3, learning_rate=1e20))
    assert "learning rate" in caught.value.remedy


def test_a_damaged_checkpoint_starts_again(tmp_path: Path) -> None:
    data, bundle = load_data("digits"), load("zoo:digits-cnn")
    (tmp_path / "training.pt").write_bytes(b"half a check")
    result = train(bundle.module(), data, bundle.preprocessing, QUICK, checkpoint=tmp_path)
    assert result.resumed_at_step == 0
    assert len(result.history) == 2


COMPRESS = ("--data", "digits", "--step", "prune-channels:macs=0.6,epochs=6", "--step", "quantize:images=64")


def _start(output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import edgekit.training as t; t.CHECKPOINT_EVERY_S = 0.2\n"
               "from edgekit.cli.main import main; main()",
               "compress", "zoo:digits-cnn", *COMPRESS, "-o", str(output)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_sigkill_in_the_middle_of_fine_tuning_then_the_same_command(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(whole).wait(300) == 0
    process = _start(killed)
    work = tmp_path / ".killed.work"
    until = time.monotonic() + 120
    # Killed when a checkpoint has been written: it must be taken up, not merely not hurt.
    while not list(work.glob("*/checkpoints/training.pt")):
        assert process.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not killed.exists()
    assert list(work.glob("*/checkpoints/training.pt"))
    assert _start(killed).wait(300) == 0
    for name in ("program.pt2", "samples.npz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not work.exists()
    again, first = Bundle.load(killed), Bundle.load(whole)
    # The history holds seconds, which differ; all else is the same.
    for bundle in (again, first):
        for epoch in bundle.steps[0]["report"]["finetune"]["history"]:
            epoch.pop("seconds")
    assert again.describe() == first.describe()

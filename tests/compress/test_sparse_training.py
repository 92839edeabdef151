"""Penalties on channels: against NumPy, and what they are worth before a cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.sparse_training import _Groups
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.program import export_program, trainable
from edgekit.testing import networks


def test_sums_of_squares_against_numpy() -> None:
    module = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    groups = _Groups(analyse(module, RULES))
    squares = groups.squares(module).detach().numpy()
    first, second = (module.get_parameter(f"conv{i}.weight").detach().double().numpy() for i in (1, 2))
    expected = (first**2).sum((1, 2, 3)) + (second**2).sum((0, 2, 3))
    flow = groups.flow
    roots = flow.roots(next(s.ids for s in flow.slots if s.parameter == "conv1.weight" and s.role == "out"))
    places = [groups.places[int(root)] for root in roots]
    np.testing.assert_allclose(squares[places], expected, rtol=1e-5)
    np.testing.assert_allclose(groups.sizes[places], 3 * 9 + 20 * 9)
    # Of flattened maps, every position of a channel belongs to its class.
    hidden = module.get_parameter("hidden.weight").detach().double().numpy().reshape(24, 20, 16)
    expected = (second**2).sum((1, 2, 3)) + (hidden**2).sum((0, 2))
    roots = flow.roots(next(s.ids for s in flow.slots if s.parameter == "conv2.weight" and s.role == "out"))
    np.testing.assert_allclose(squares[[groups.places[int(root)] for root in roots]], expected, rtol=1e-5)


def test_the_cut_takes_nothing_after_a_growing_penalty(before: Bundle, data: Dataset) -> None:
    cut = "prune-channels:macs=0.4,multiple=1,importance=l2,reconstruct=0,epochs=0"
    trained = compress(before, "sparse-train:penalty=growing,strength=30,macs=0.4,multiple=1,epochs=12", data)
    plain, sparse = compress(before, ["finetune:epochs=12,learning_rate=0.01", cut], data), compress(trained, cut, data)
    whole, without, with_penalty = (
        evaluate(b.module(), data.validation, b.preprocessing).top1 for b in (trained, plain, sparse)
    )
    assert with_penalty > whole - 1 > without + 10
    assert trained.steps[-1]["report"]["gone"]["after"] > 0.25


def test_group_lasso_makes_groups_smaller(before: Bundle, data: Dataset) -> None:
    plain = compress(before, "finetune:epochs=6,learning_rate=0.01,keep=last", data)
    sparse = compress(before, "sparse-train:penalty=group-lasso,strength=0.003,epochs=6", data)
    sums = []
    for bundle in (plain, sparse):
        module = bundle.module()
        sums.append(float(_Groups(analyse(module, RULES)).norms(module).sum()))
    assert sums[1] < 0.9 * sums[0]


def test_scales_of_batch_norm_become_smaller(before: Bundle, data: Dataset) -> None:
    trained = compress(before, "sparse-train:penalty=batch-norm,strength=1,epochs=5", data)
    scales = [
        torch.cat([value.abs() for name, value in b.program.state_dict.items() if name.endswith("bn1.weight")]).mean()
        for b in (before, trained)
    ]
    assert scales[1] < 0.8 * scales[0]


def test_a_network_without_batch_norm_says_what_to_take() -> None:
    bundle = Bundle(export_program(networks.make("concat"), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    from edgekit.data.references import load_data

    with pytest.raises(StepError, match="no batch norm"):
        compress(bundle, "sparse-train:penalty=batch-norm", _as_floats(load_data("digits")))


def _as_floats(data: Dataset) -> Dataset:
    from dataclasses import replace

    from edgekit.data.dataset import Split

    x = networks.images(20).numpy()
    split = Split(x, np.arange(20) % networks.CLASSES)
    return replace(data, labels=tuple("abcdefg"), train=split, validation=split, test=split)


@pytest.mark.parametrize("text", ["strength=0", "macs=1.5", "epochs=0", "penalty=none"])
def test_settings_that_make_no_sense_are_refused(text: str) -> None:
    from edgekit.compress.step import parse_step

    with pytest.raises(UsageError):
        parse_step(f"sparse-train:{text}")

"""Accuracy and its errors, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from edgekit.data.dataset import Split
from edgekit.errors import DataError
from edgekit.evaluation import evaluate, from_logits, paired_difference


def test_top1_and_top5_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((500, 10)), rng.integers(0, 10, 500)
    found = from_logits(logits, labels)
    assert found.top1 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=1))
    assert found.top5 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5))
    share = found.top1 / 100
    assert found.standard_error == pytest.approx(100 * np.sqrt(share * (1 - share) / 500))
    weighted = sum(row["top1"] * row["count"] for row in found.per_class) / 500
    assert weighted == pytest.approx(found.top1)


def test_of_equal_outputs_the_first_counts_as_argmax_does() -> None:
    logits = np.random.default_rng(0).integers(0, 3, (400, 8)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 8, 400)
    found = from_logits(logits, labels)
    assert found.top1 == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert found.top1 == pytest.approx(100 * np.mean(found.predictions == found.labels))


def test_what_is_not_finite_is_wrong() -> None:
    logits = np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 0.0], [-np.inf, -np.inf]])
    assert from_logits(logits, np.array([0, 0, 0, 0])).top1 == 25.0


def test_a_label_without_output_is_refused() -> None:
    with pytest.raises(DataError, match="labels up to 2, and 2 outputs"):
        from_logits(np.zeros((2, 2)), np.array([0, 2]))


def test_a_map_of_one_pixel_is_a_number_for_each_class() -> None:
    split = Split(np.random.default_rng(0).random((6, 3, 4, 4), dtype=np.float32), np.zeros(6, np.int64))
    flat = evaluate(torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()), split, None)
    assert np.array_equal(evaluate(torch.nn.AvgPool2d(4), split, None).logits, flat.logits)


def test_a_network_that_gives_a_map_is_refused() -> None:
    split = Split(np.zeros((6, 3, 4, 4), np.float32), np.zeros(6, np.int64))
    with pytest.raises(DataError, match=r"output of shape \(3, 2, 2\) .* one number for each class"):
        evaluate(torch.nn.AvgPool2d(2), split, None)


def test_paired_difference_counts_only_where_they_differ() -> None:
    labels = np.zeros(100, np.int64)
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    a = np.stack([right] * 80 + [wrong] * 20)
    b = np.stack([right] * 78 + [wrong] * 2 + [right] * 6 + [wrong] * 14)
    difference, error = paired_difference(from_logits(a, labels), from_logits(b, labels))
    assert difference == pytest.approx(4.0)
    # Six gained and two lost: variance of the per-image difference, (8 - 100 · 0.04²) / 99.
    assert error == pytest.approx(100 * np.sqrt((8 - 100 * 0.04**2) / 99 / 100))

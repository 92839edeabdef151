"""When two sets of outputs are believed to be the same network."""

from __future__ import annotations

import numpy as np

from edgekit.export.parity import TOLERANCES, compare, violations


def _outputs(classes: int = 1000, samples: int = 200) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((samples, classes))


def test_near_ties_are_no_disagreement() -> None:
    """With a thousand close classes, noise at 24 dB moves the first place often; that alone is no error."""
    reference = _outputs()
    noisy = reference + np.random.default_rng(1).standard_normal(reference.shape) * 10 ** (-24 / 20)
    found = compare(reference, noisy)
    assert found.top1_percent < 95
    assert found.decided_top1_percent == 100
    assert not violations(found, TOLERANCES["int8"], float(reference.max()))


def test_a_wrong_class_is_one_however_small_the_rest_of_the_difference() -> None:
    reference = _outputs()
    wrong = reference.copy()
    # One class lost, as by a damaged channel of the last layer: the first place of some samples, far ahead.
    reference[:30, 7] = 9.0
    wrong[:30, 7] = 0.0
    found = compare(reference, wrong)
    assert found.decided_top1_percent == 85.0
    assert any("top-1" in text for text in violations(found, TOLERANCES["int8"], 9.0))


def test_outputs_that_are_not_finite_agree_with_nothing() -> None:
    reference = _outputs(10, 5)
    found = compare(reference, np.full_like(reference, np.nan))
    assert found.top1_percent == found.decided_top1_percent == 0.0
    assert violations(found, TOLERANCES["float32"], 1.0)

"""Calibration methods against independent computations, and their memory."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from edgekit.compress.quantize.calibration.histogram import BINS, StreamingHistogram
from edgekit.compress.quantize.calibration.mse import MeanSquaredError
from edgekit.compress.quantize.calibration.observer import OBSERVERS, observer_class
from edgekit.compress.quantize.scheme import affine_parameters
from edgekit.compress.quantize.static import Quantize


def _batches(kind: str, count: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(50, 40, generator=generator) for _ in range(count)]
    if kind == "relu":
        return [torch.relu(x) for x in made]
    if kind == "outlier":
        made[7][3, 5] = 60.0
    if kind == "shifted":
        return [x * 0.3 + 2.0 for x in made]
    return made


def _observed(name: str, batches: list[torch.Tensor]) -> tuple[float, float]:
    observer = observer_class(name)()
    for batch in batches:
        observer.update(batch, float(batch.min()), float(batch.max()))
    return observer.range()


def test_the_setting_offers_every_method() -> None:
    assert set(get_args(get_type_hints(Quantize)["calibration"])) == set(OBSERVERS)


@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "shifted", "zeros"])
@pytest.mark.parametrize("name", OBSERVERS)
def test_what_every_method_promises(name: str, kind: str) -> None:
    batches = [torch.zeros(3, 4)] * 3 if kind == "zeros" else _batches(kind)
    low, high = _observed(name, batches)
    seen = torch.cat(batches)
    assert min(float(seen.min()), 0.0) <= low <= 0.0 <= high <= max(float(seen.max()), 0.0)
    if kind == "relu":
        assert low == 0.0
    # The order within a batch does not matter.
    turned = [batch.flip(0) for batch in batches]
    assert _observed(name, turned) == (low, high)


# One value of 60 among 40 000 normal ones costs more squared error clipped than the coarser grid does: mse keeps it.
@pytest.mark.parametrize("name", ["percentile", "entropy"])
def test_an_outlier_is_clipped(name: str) -> None:
    low, high = _observed(name, _batches("outlier"))
    assert high < 10
    assert low > -10
    assert _observed("min-max", _batches("outlier"))[1] == 60.0


def test_moving_average_by_hand() -> None:
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 12.0]), torch.tensor([-1.0, 2.0])]
    low, high = _observed("moving-average", batches)
    assert low == pytest.approx((-1.0 * 0.9 + -3.0 * 0.1) * 0.9 - 1.0 * 0.1)
    assert high == pytest.approx((2.0 * 0.9 + 12.0 * 0.1) * 0.9 + 2.0 * 0.1)


def test_the_stream_s_histogram_is_that_of_the_whole() -> None:
    generator = np.random.default_rng(0)
    # Growing scales, so that the width doubles again and again.
    parts = [generator.standard_normal(500).astype(np.float32) * 3**i for i in range(6)]
    streamed = StreamingHistogram()
    for part in parts:
        streamed.update(torch.from_numpy(part), float(part.min()), float(part.max()))
    whole = np.concatenate(parts).astype(np.float64)
    counts, _ = np.histogram(whole, streamed.edges)
    # np.histogram closes its last bin; nothing lies there.
    np.testing.assert_array_equal(streamed.counts, counts)
    assert streamed.counts.shape == (2 * BINS,)
    for share in (0.1, 0.5, 0.8, 0.9):
        assert streamed.quantile(share) == pytest.approx(np.quantile(whole, share), abs=2 * streamed.width)


@pytest.mark.parametrize("kind", ["heavy tails", "outlier"])
def test_mse_finds_the_least_error_of_a_search_over_values(kind: str) -> None:
    values = torch.cat(_batches("outlier")).reshape(-1)
    if kind == "heavy tails":
        values = torch.sign(values) * values.abs().clamp(max=6) ** 3
    observer = MeanSquaredError()
    observer.update(values, float(values.min()), float(values.max()))
    low, high = observer.range()
    x = values.double().numpy()

    def error(a: float, b: float) -> float:
        grid = affine_parameters(a, b)
        q = np.clip(np.round(x / grid.scale) + grid.zero_point, -128, 127)
        return float(((x - (q - grid.zero_point) * grid.scale) ** 2).mean())

    ends = np.linspace(0.3, 1.0, 141)
    best = min(error(a * float(x.min()), b * float(x.max())) for a in ends[::4] for b in ends)
    assert error(low, high) <= 1.05 * best
    assert error(low, high) < error(float(x.min()), float(x.max()))


def test_entropy_agrees_with_a_plain_rewriting_of_the_slides() -> None:
    from edgekit.compress.quantize.calibration.entropy import _divergence

    counts = np.random.default_rng(1).integers(1, 50, 600).astype(np.float64)
    kept, levels = 400, 128
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for level in range(levels):
        inside = [i for i in range(kept) if i * levels // kept == level]
        q[inside] = counts[inside].sum() / len(inside)
    p, q = p / p.sum(), q / q.sum()
    assert _divergence(counts, kept, levels) == pytest.approx(float((p * np.log(p / q)).sum()))


@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_does_not_grow_with_the_images(name: str) -> None:
    import pickle

    sizes = []
    for count in (2, 60):
        observer = observer_class(name)()
        for batch in _batches("normal", count):
            observer.update(batch, float(batch.min()), float(batch.max()))
        sizes.append(len(pickle.dumps(observer)))
    assert sizes[1] <= sizes[0] + 64

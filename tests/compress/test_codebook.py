"""Weights as codes: k-means, powers of two, what they take on disk, and that nothing is lost on the way."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.codebook.coding import entropy_bits, expand_codes
from edgekit.compress.quantize.codebook.power import powers
from edgekit.compress.quantize.codebook.share import cluster
from edgekit.compress.step import parse_step
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.export.run import export
from edgekit.program import attribute, codebook_of


def _coded(bundle: Bundle) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    module = bundle.module()
    found = [codebook_of(node) for node in module.graph.nodes]
    return {f[0]: (attribute(module, f[0]), attribute(module, f[1]).detach()) for f in found if f is not None}


def test_clusters_are_those_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    weight = np.random.default_rng(0).standard_normal((40, 5, 3, 3)).astype(np.float32)
    codes, centroids = cluster(weight, 12)
    start = np.linspace(weight.min(), weight.max(), 12).reshape(-1, 1)
    other = KMeans(12, init=start, n_init=1, max_iter=1000, tol=0.0).fit(weight.reshape(-1, 1).astype(np.float64))
    np.testing.assert_allclose(centroids, np.sort(other.cluster_centers_.reshape(-1)), rtol=1e-4, atol=1e-5)
    order = np.argsort(np.argsort(other.cluster_centers_.reshape(-1)))
    assert (order[other.labels_] == codes.reshape(-1)).mean() > 0.999


def test_few_distinct_values_are_kept_exactly() -> None:
    weight = np.array([[0.5, -0.25], [0.0, 0.5]], np.float32)
    codes, centroids = cluster(weight, 8)
    np.testing.assert_array_equal(centroids[codes], weight)


def test_centroids_get_the_sum_of_their_weights_gradients(before: Bundle, data: Dataset) -> None:
    module = compress(before, "share-weights:clusters=8,epochs=0", data).module()
    node = next(n for n in module.graph.nodes if codebook_of(n) is not None)
    codes, table = (attribute(module, name) for name in codebook_of(node))
    plain = compress(before, "share-weights:clusters=8,epochs=0", data).module()
    expand_codes(plain)
    assert before.preprocessing is not None
    x = torch.from_numpy(before.preprocessing(data.train.images(np.arange(16))))
    for network in (module, plain):
        network(x).square().mean().backward()
    weight_gradient = attribute(plain, codebook_of(node)[0].removesuffix("_codes")).grad
    expected = torch.zeros(8).index_add_(0, codes.reshape(-1).long(), weight_gradient.reshape(-1))
    torch.testing.assert_close(table.grad, expected, rtol=1e-3, atol=1e-6)


def test_training_the_centroids_helps_and_keeps_the_codes(before: Bundle, data: Dataset) -> None:
    from edgekit.evaluation import evaluate

    plain = compress(before, "share-weights:clusters=4,epochs=0", data)
    trained = compress(before, "share-weights:clusters=4,epochs=3,learning_rate=0.001", data)
    a, b = _coded(plain), _coded(trained)
    assert all(torch.equal(a[name][0], b[name][0]) for name in a)
    assert any(not torch.equal(a[name][1], b[name][1]) for name in a)
    top1 = [evaluate(x.module(), data.validation, x.preprocessing).top1 for x in (plain, trained)]
    assert top1[1] > top1[0]


@pytest.mark.parametrize("step", ["share-weights:clusters=32,epochs=0", "powers-of-two:bits=5,epochs=0"])
def test_the_archive_is_as_small_as_the_entropy_says(step: str, before: Bundle, data: Dataset, tmp_path: Path) -> None:
    bundle = compress(before, step, data, output=tmp_path / "small")
    coded = _coded(bundle)
    theory = sum(codes.numel() * entropy_bits(codes) / 8 for codes, _ in coded.values())
    reported = sum(r["weights"] * r["entropy_bits"] / 8 for r in bundle.steps[-1]["report"]["layers"])
    assert reported == pytest.approx(theory)
    with zipfile.ZipFile(tmp_path / "small" / "program.pt2") as archive:
        sizes = {codes.numel() for codes, _ in coded.values()}
        stored = [entry for entry in archive.infolist() if entry.file_size in sizes and "/weights/" in entry.filename]
        assert len(stored) == len(coded)
        taken = sum(entry.compress_size for entry in stored)
    # A table of code lengths for each layer is what Huffman adds.
    assert theory <= taken <= 1.02 * theory + 60 * len(coded)
    assert cost_of(bundle.module()).bytes < 0.2 * cost_of(before.module()).bytes


def test_what_is_stored_decodes_bit_for_bit(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    made = compress(before, "share-weights:clusters=16,epochs=1", data, output=tmp_path / "small")
    loaded = Bundle.load(tmp_path / "small")
    a, b = _coded(made), _coded(loaded)
    assert all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))
    plain = loaded.module()
    expand_codes(plain)
    for name, (codes, table) in a.items():
        assert torch.equal(attribute(plain, name.removesuffix("_codes")), table[codes.long()])


def test_onnx_keeps_the_codes(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    small = compress(before, "share-weights:clusters=32,epochs=0", data)
    (file,) = export(small, "onnx", data=data, output=tmp_path)
    (whole,) = export(before, "onnx", data=data, output=tmp_path / "float")
    assert file.parity["size_bytes"] < 0.4 * whole.parity["size_bytes"]
    assert any("table" in note for note in file.parity["lowering"])
    for other in export(small, ["tflite", "ncnn"], data=data, output=tmp_path):
        assert any("no smaller" in note for note in other.parity["lowering"])


@pytest.mark.parametrize(
    ("largest", "bits", "exponents"),
    # Equations 2 and 3 by hand: n1 = floor(log2(4 s / 3)), and 2^(bits - 2) exponents downwards.
    [(0.9, 5, range(-7, 1)), (0.7, 3, range(-2, 0)), (3.0, 2, range(2, 3)), (1.0, 4, range(-3, 1))],
)
def test_powers_of_two_by_hand(largest: float, bits: int, exponents: range) -> None:
    table = powers(torch.tensor([0.1, -largest, 0.0]), bits)
    expected = sorted([0.0, *(2.0**n for n in exponents), *(-(2.0**n) for n in exponents)])
    assert table.tolist() == expected
    assert len(table) <= 2**bits


def test_incremental_quantization_ends_in_powers_of_two(before: Bundle, data: Dataset) -> None:
    after = compress(before, "powers-of-two:bits=4,epochs=1,portions=[0.5,0.8,1]", data)
    report = after.steps[-1]["report"]
    assert [phase["portion"] for phase in report["phases"]] == [0.5, 0.8]
    for codes, table in _coded(after).values():
        magnitudes = table[table != 0].abs()
        assert torch.equal(magnitudes.log2(), magnitudes.log2().round())
        assert int(codes.max()) < len(table)
    plain = compress(before, "powers-of-two:bits=4,epochs=0", data)
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(_coded(after).values(), _coded(plain).values(), strict=True))


def test_what_is_fixed_stays_while_the_rest_is_trained(before: Bundle, data: Dataset) -> None:
    """After one phase of training, the portion fixed before it has its values still."""
    from edgekit.compress.layers import own_weights
    from edgekit.compress.quantize.codebook.power import PowersOfTwo, _largest, _nearest
    from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
    from edgekit.compress.step import Context

    module = before.module()
    remove_dropout(module)
    fold_batch_norm(module)
    names = [name for _, name in own_weights(module)]
    fixed = {}
    for name in names:
        weight = attribute(module, name)
        table = powers(weight.detach(), 5)
        fixed[name] = _largest(weight.detach(), torch.zeros_like(weight, dtype=torch.bool), 0.5)
        weight.data = torch.where(fixed[name], _nearest(weight.data, table), weight.data)
    was = {name: attribute(module, name).detach().clone() for name in names}
    PowersOfTwo(epochs=1)._train(module, fixed, before, Context(data=data), 0)
    for name in names:
        now, mask = attribute(module, name).detach(), fixed[name]
        assert torch.equal(now[mask], was[name][mask])
        assert not torch.equal(now[~mask], was[name][~mask])
        # What is fixed once is never given up, however large the others grow.
        grown = torch.where(mask, now, now * 100)
        assert (_largest(grown, mask, 0.75) & mask).sum() == mask.sum()


@pytest.mark.parametrize("step", ["quantize", "prune-channels:macs=0.5", "equalize", "share-weights", "powers-of-two"])
def test_coded_weights_are_refused_by_what_needs_floats(step: str, before: Bundle, data: Dataset) -> None:
    small = compress(before, "share-weights:clusters=8,epochs=0", data)
    with pytest.raises(StepError, match="codes into a table"):
        compress(small, step, data)


@pytest.mark.parametrize(
    "text",
    ["share-weights:clusters=1", "share-weights:clusters=257", "powers-of-two:portions=[0.5]", "powers-of-two:bits=1"],
)
def test_settings_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_step(text)

"""Weight pruning: which weights go, what stays zero, and what it takes on disk."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.prune.sparse import dense, expand_sparse, mask_bits
from edgekit.compress.prune.weights import PruneWeights
from edgekit.compress.step import parse_step
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.errors import StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.export.run import export
from edgekit.program import attribute, export_program, quantized, sparse_of


def _weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    module = bundle.module()
    found = [sparse_of(node) for node in module.graph.nodes]
    return {names[0].removesuffix("_mask"): dense(module, names) for names in found if names is not None}


def _scores() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(8, 12, 3, 3, generator=generator),
        "b": torch.randn(20, 16, generator=generator) * 3,
    }


def test_the_smallest_of_all_layers_go_first() -> None:
    scores = _scores()
    masks = PruneWeights(sparsity=0.7).masks(scores, 0.7)
    flat = np.concatenate([s.abs().numpy().reshape(-1) for s in scores.values()])
    border = np.sort(flat)[round(0.7 * len(flat))]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask.numpy(), scores[name].abs().numpy() >= border)


def test_every_layer_by_itself_and_none_vanishes() -> None:
    scores = _scores()
    masks = PruneWeights(sparsity=0.75, scope="layer").masks(scores, 0.75)
    assert {float(mask.float().mean()) for mask in masks.values()} == {0.25}
    scores["a"] *= 1e-6
    masks = PruneWeights(sparsity=0.9).masks(scores, 0.9)
    assert 0.015 < float(masks["a"].float().mean()) < 0.025


def test_two_of_every_four_input_channels_the_largest() -> None:
    scores = _scores()
    masks = PruneWeights(pattern="2:4").masks(scores, 0.0)
    for name, mask in masks.items():
        magnitude, kept = scores[name].abs().numpy(), mask.numpy()
        for row in np.ndindex(*[s for d, s in enumerate(kept.shape) if d != 1]):
            index = (row[0], slice(None), *row[1:])
            for start in range(0, kept.shape[1], 4):
                values, chosen = magnitude[index][start : start + 4], kept[index][start : start + 4]
                assert set(np.flatnonzero(chosen)) == set(np.argsort(values)[2:])


def test_blocks_of_output_channels_share_their_zeros() -> None:
    mask = PruneWeights(block=4, sparsity=0.5).masks(_scores(), 0.5)["a"].view(2, 4, 12, 3, 3)
    assert (mask == mask[:, :1]).all()


def test_zeros_stay_zeros_and_the_rest_is_trained(before: Bundle, data: Dataset) -> None:
    cut = compress(before, "prune-weights:sparsity=0.8,epochs=0", data)
    tuned = compress(cut, "finetune:epochs=2", data)
    again = compress(before, "prune-weights:sparsity=0.8,epochs=2", data)
    a, b = _weights(cut), _weights(tuned)
    zeros = sum(int((w == 0).sum()) for w in a.values()) / sum(w.numel() for w in a.values())
    assert zeros == pytest.approx(0.8, abs=0.001)
    for name in a:
        assert torch.equal(a[name] == 0, b[name] == 0)
        assert not torch.equal(a[name], b[name])
    top1 = [evaluate(x.module(), data.validation, x.preprocessing).top1 for x in (cut, tuned, again)]
    assert min(top1[1:]) > top1[0]
    plain = tuned.module()
    assert expand_sparse(plain) == len(a)
    x = torch.from_numpy(next(iter(data.validation.batches(before.preprocessing, 16)))[0])
    assert torch.equal(plain(x), tuned.module()(x))


@pytest.mark.parametrize("importance", ["magnitude", "movement"])
def test_a_ramp_keeps_more_than_cutting_at_once(importance: str, before: Bundle, data: Dataset) -> None:
    at_once = compress(before, "prune-weights:sparsity=0.95,epochs=0", data)
    ramped = compress(before, f"prune-weights:sparsity=0.95,ramp=8,epochs=0,importance={importance}", data)
    report = ramped.steps[-1]["report"]
    assert report["zeros"] == pytest.approx(0.95, abs=0.001)
    top1 = [evaluate(x.module(), data.validation, x.preprocessing).top1 for x in (at_once, ramped)]
    assert top1[1] > top1[0] + 5


def test_movement_keeps_what_grows(before: Bundle, data: Dataset) -> None:
    masks = [
        {
            name: w != 0
            for name, w in _weights(compress(before, f"prune-weights:sparsity=0.6,ramp=1,epochs=0{more}", data)).items()
        }
        for more in ("", ",importance=movement")
    ]
    assert any(not torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
def test_the_archive_is_as_small_as_theory_says(sparsity: float, before: Bundle, data: Dataset, tmp_path: Path) -> None:
    bundle = compress(before, f"prune-weights:sparsity={sparsity},epochs=0", data, output=tmp_path / "small")
    weights = _weights(bundle)
    theory = sum(int((w != 0).sum()) * 4 + w.numel() * mask_bits(w != 0) / 8 for w in weights.values())
    names = {name for name in bundle.program.state_dict if name.endswith(("_mask", "_values"))}
    with zipfile.ZipFile(tmp_path / "small" / "program.pt2") as archive:
        stored = sum(e.compress_size for e in archive.infolist() if "/weights/weight_" in e.filename)
        stored += sum(e.compress_size for e in archive.infolist() if "/constants/" in e.filename)
    others = sum(t.nbytes for n, t in bundle.program.state_dict.items() if n not in names)
    assert names
    assert stored <= 1.1 * theory + others
    reported = sum(row["weights"] * row["bits_per_weight"] / 8 for row in bundle.steps[-1]["report"]["layers"])
    assert reported == pytest.approx(theory, rel=1e-6)
    assert cost_of(bundle.module()).bytes < 0.35 * cost_of(before.module()).bytes


def test_files_shrink_where_the_format_can_and_every_format_computes_the_same(
    before: Bundle, data: Dataset, tmp_path: Path
) -> None:
    small = compress(before, "prune-weights:sparsity=0.8,epochs=0", data)
    whole = export(before, ["onnx", "tflite", "ncnn"], data=data, output=tmp_path / "whole")
    files = export(small, ["onnx", "tflite", "ncnn"], data=data, output=tmp_path / "small")
    sizes = [b.parity["size_bytes"] / a.parity["size_bytes"] for a, b in zip(whole, files, strict=True)]
    assert sizes[0] < 0.4
    assert sizes[1] < 0.6
    assert sizes[2] > 0.95
    for file, said in zip(
        files[1:], ("no faster. For XNNPACK's sparse kernels stand in the way", "no smaller"), strict=True
    ):
        assert said in " ".join(file.parity["lowering"])


def test_quantized_afterwards_the_zeros_are_still_there(before: Bundle, data: Dataset, tmp_path: Path) -> None:
    small = compress(before, ["prune-weights:sparsity=0.9,epochs=1", "quantize:images=64"], data, output=tmp_path / "b")
    whole = compress(before, "quantize:images=64", data, output=tmp_path / "whole")
    module = small.module()
    weights = [
        attribute(module, str(node.args[0].target))
        for node in module.graph.nodes
        if node.target is quantized.dequantize_per_channel.default
    ]
    assert sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights) > 0.89
    sizes = [(tmp_path / name / "program.pt2").stat().st_size for name in ("b", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    formats = ["onnx", "tflite"]
    files = [export(x, formats, data=data, output=tmp_path / str(i)) for i, x in enumerate((small, whole))]
    for a, b in zip(*files, strict=True):
        assert a.parity["size_bytes"] < 0.75 * b.parity["size_bytes"]
        assert a.parity["int8_macs_share"] == 1


def test_layers_that_do_not_fit_the_pattern_stay_whole_and_are_named(before: Bundle, data: Dataset) -> None:
    report = compress(before, "prune-weights:pattern=2:4,epochs=0,keep=[fc*]", data).steps[-1]["report"]
    reasons = {row["layer"]: row["reason"] for row in report["kept_whole"]}
    assert any("no multiple of 4" in reason for reason in reasons.values())
    assert all(row["zeros"] == pytest.approx(0.5) for row in report["layers"])


def test_steps_that_need_plain_weights_say_so(before: Bundle, data: Dataset) -> None:
    small = compress(before, "prune-weights:epochs=0", data)
    with pytest.raises(StepError, match="sparse already"):
        compress(small, "prune-channels:macs=0.5,epochs=0", data)


@pytest.mark.parametrize(
    "text", ["sparsity=1", "pattern=4:2", "pattern=two", "importance=movement", "block=2,pattern=2:4", "block=0"]
)
def test_settings_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_step(f"prune-weights:{text}")


def test_a_buffer_that_is_called_a_mask_makes_nothing_sparse() -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)
            self.register_buffer("attention_mask", torch.ones(8))
            self.register_buffer("country_codes", torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).mean((2, 3)) * self.attention_mask + self.country_codes)

    bundle = Bundle(export_program(Masked().eval(), (3, 8, 8)), (3, 8, 8))
    assert bundle.weights == "float32"
    small = compress(bundle, "prune-weights:epochs=0")
    assert small.weights == "sparse"

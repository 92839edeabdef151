"""What a format can't express is refused by name, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError, UnknownNameError, UnsupportedOperatorError, UsageError
from edgekit.export.run import export
from edgekit.program import export_program
from edgekit.testing.exporters import bundle_of


class Gathers(nn.Module):
    """An operator that ONNX has and ncnn has not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x.flatten(1))
        return torch.gather(y, 1, torch.zeros_like(y, dtype=torch.int64))


def _bundle() -> Bundle:
    bundle = Bundle(export_program(Gathers(), (3, 2, 2)), (3, 2, 2))
    x = np.random.default_rng(0).standard_normal((8, 3, 2, 2), dtype=np.float32)
    return bundle.with_samples(x, np.zeros(8, np.int64))


def test_an_operator_that_ncnn_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"GatherElements.*aten\.gather") as caught:
        export(_bundle(), "ncnn", output=tmp_path / "out")
    assert "leave ncnn out" in caught.value.remedy
    assert not (tmp_path / "out").exists()
    assert export(_bundle(), "onnx", output=tmp_path / "out")[0].path.is_file()


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        # Its axis becomes an expression of pnnx's, which ncnn lacks as well.
        (lambda x: torch.cumsum(x, -1), "no operator CumSum at .*cumsum"),
        (torch.triu, r"no operator Trilu at .*aten\.triu"),
        # Two letters, and two operators.
        (lambda x: torch.where(x > 0, x, x * x), r"no operator torch\.gt and no torch\.where at .*aten\.gt"),
        # ONNX writes it with others.
        (lambda x: torch.atan2(x, x + 2), r"torch\.where.* at .*aten\.atan2"),
    ],
    ids=["cumsum", "triu", "where", "atan2"],
)
def test_the_operator_is_the_users_not_pnnx_s(
    operation: Callable[[torch.Tensor], torch.Tensor], named: str, tmp_path: Path
) -> None:
    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return operation(x).mean((2, 3))

    x = np.random.default_rng(0).standard_normal((8, 3, 2, 2), dtype=np.float32)
    bundle = Bundle(export_program(Network(), (3, 2, 2)), (3, 2, 2)).with_samples(x, np.zeros(8, np.int64))
    with pytest.raises(UnsupportedOperatorError, match=named):
        export(bundle, "ncnn", output=tmp_path)


def test_a_strided_slice_is_rewritten_for_ncnn_and_told(tmp_path: Path) -> None:
    (file,) = export(bundle_of("residual"), "ncnn", output=tmp_path)
    assert any("strided slices" in note for note in file.parity["lowering"])
    assert "Tensor.slice" not in file.path.read_text()


def test_a_grouped_convolution_is_left_in_float_by_ncnn_and_told(tmp_path: Path) -> None:
    (file,) = export(bundle_of("grouped", "int8"), "ncnn", output=tmp_path)
    assert any("grouped computes in float" in note for note in file.parity["lowering"])


def test_usage(tmp_path: Path) -> None:
    bundle = bundle_of("plain")
    with pytest.raises(UnknownNameError, match="onx"):
        export(bundle, "onx", output=tmp_path)
    with pytest.raises(UnknownNameError, match="int9"):
        export(bundle, "onnx", precision="int9", output=tmp_path)
    with pytest.raises(UsageError, match="no place for its files"):
        export(bundle, "onnx")
    with pytest.raises(UsageError, match="nothing to prove"):
        export(Bundle(bundle.program, bundle.input_shape), "onnx", output=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgekitError, match="can't be written"):
        export(bundle, "onnx", output=tmp_path / "file" / "out")

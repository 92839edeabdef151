"""Programs: export, normal form, training switch, and files that never unpickle."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.errors import SourceError
from edgekit.program import export_program, set_training, trainable
from edgekit.pt2 import load_pt2, save_pt2
from edgekit.testing import networks


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_program_computes_what_the_module_does_for_any_batch(name: str) -> None:
    network = networks.make(name)
    program = export_program(network, networks.INPUT_SHAPE)
    for count in (1, 2, 5):
        x = networks.images(count)
        torch.testing.assert_close(trainable(program)(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_saved_program_is_equal_to_the_bit_and_holds_no_pickle(name: str, tmp_path: Path) -> None:
    program = export_program(networks.make(name), networks.INPUT_SHAPE)
    save_pt2(program, tmp_path / "a.pt2")
    save_pt2(program, tmp_path / "b.pt2")
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    loaded = load_pt2(tmp_path / "a.pt2")
    x = networks.images(3)
    assert torch.equal(trainable(loaded)(x), trainable(program)(x))
    with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
        for entry in archive.namelist():
            content = archive.read(entry)
            assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), f"{entry} is a pickle or an archive"


def test_training_normalizes_by_the_batch_and_moves_the_statistics() -> None:
    network = networks.make("residual")
    module = trainable(export_program(network, networks.INPUT_SHAPE))
    x = networks.images(6)
    set_training(module, True)
    expected = network.train()(x)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.get_buffer("bn0.running_mean"), network.get_buffer("bn0.running_mean"))
    set_training(module, False)
    torch.testing.assert_close(module(x), network.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_pt2(export_program(networks.make("plain"), networks.INPUT_SHAPE), tmp_path / "a.pt2")
    content = (tmp_path / "a.pt2").read_bytes()
    for share in (0.0, 0.3, 0.99):
        (tmp_path / "cut.pt2").write_bytes(content[: int(share * len(content))])
        with pytest.raises(SourceError, match="damaged"):
            load_pt2(tmp_path / "cut.pt2")


def _rewritten(path: Path, change) -> bytes:  # type: ignore[no-untyped-def]
    """The archive with each member passed through ``change(name, content)``."""
    raw = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(raw, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, change(entry.filename, source.read(entry)))
    return raw.getvalue()


def test_what_would_be_unpickled_is_refused(tmp_path: Path) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    save_pt2(export_program(Constant(), (4,)), tmp_path / "a.pt2")

    def mark(name: str, content: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return content
        return content.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
            b'"use_pickle":false', b'"use_pickle":true'
        )

    changed = _rewritten(tmp_path / "a.pt2", mark)
    assert b'"use_pickle": true' in changed or b'"use_pickle":true' in changed, "the format changed: look again"
    (tmp_path / "evil.pt2").write_bytes(changed)
    with pytest.raises(SourceError, match="pickle"):
        load_pt2(tmp_path / "evil.pt2")


def test_an_expression_that_is_code_is_refused(tmp_path: Path) -> None:
    save_pt2(export_program(networks.make("plain"), networks.INPUT_SHAPE), tmp_path / "a.pt2")

    def inject(name: str, content: bytes) -> bytes:
        if not name.endswith("model.json"):
            return content
        text = content.decode()
        assert '"expr_str"' in text, "the format changed: look again"
        found = json.loads(text)

        def walk(value):  # type: ignore[no-untyped-def]
            if isinstance(value, dict):
                for key in value:
                    if key == "expr_str":
                        value[key] = "__import__('os').system('true')"
                    walk(value[key])
            elif isinstance(value, list):
                for item in value:
                    walk(item)

        walk(found)
        return json.dumps(found).encode()

    (tmp_path / "evil.pt2").write_bytes(_rewritten(tmp_path / "a.pt2", inject))
    with pytest.raises(SourceError, match="refused"):
        load_pt2(tmp_path / "evil.pt2")


def test_what_cannot_be_exported_is_told_with_its_place() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(SourceError, match=r"test_program\.py.*if x\.sum\(\) > 0"):
        export_program(Branches(), (4,))


@pytest.mark.parametrize("layer", [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d])
@pytest.mark.parametrize(
    ("kernel", "dilation", "padding"), [(3, 1, "same"), (4, 1, "same"), (2, 3, "same"), (5, 2, "valid")]
)
def test_padding_by_name_becomes_numbers(
    layer: type[torch.nn.Module], kernel: int, dilation: int, padding: str
) -> None:
    """Otherwise no rule would know these convolutions: not counted, not cut, not quantized, and nobody told."""
    network = layer(3, 6, kernel, dilation=dilation, padding=padding)
    shape = (3, *[11, 10, 12][: network.weight.dim() - 2])  # type: ignore[operator, union-attr]
    module = trainable(export_program(network, shape))
    plain = {torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default}
    assert len(plain & {node.target for node in module.graph.nodes}) == 1
    assert "padding" not in {str(node.target).rpartition(".")[2] for node in module.graph.nodes}
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x), network(x))
    again = trainable(export_program(module, shape))  # shapes are known to the graph
    assert [n.meta["val"].shape[1:] for n in again.graph.nodes if n.op == "call_function"] == [
        n.meta["val"].shape[1:] for n in module.graph.nodes if n.op == "call_function"
    ]


def test_a_norm_of_single_inputs_has_no_other_way_in_evaluation() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.InstanceNorm2d(4, affine=True)).eval()
    module = trainable(export_program(network, (3, 8, 8)))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        torch.testing.assert_close(set_training(module, training)(x), network(x))

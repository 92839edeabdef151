"""MODEL in all its forms, and what is refused at the door."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekit.errors import SourceError, UsageError
from edgekit.program import export_program
from edgekit.pt2 import load_pt2, save_pt2
from edgekit.sources.load import load

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    input_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

def fails():
    raise ValueError("no luck")

def number():
    return 3
"""


class _Code:
    """What unpickles to a call; if it ever ran, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.path),)


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "models.py").write_text(FACTORY)
    return f"{tmp_path / 'models.py'}:Net"


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.randn(4),
        "head.weight": torch.randn(2, 4),
        "head.bias": torch.randn(2),
    }


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped"])
def test_weights_in_every_form_give_the_same_network(form: str, factory: str, tmp_path: Path) -> None:
    state = _state()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    else:  # as DataParallel and training scripts leave it
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    bundle = load(factory, weights=path)
    x = torch.randn(2, 3, 8, 8)
    conv = torch.nn.functional.conv2d(x, state["conv.weight"], state["conv.bias"])
    expected = conv.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(bundle.module()(x), expected, rtol=1e-4, atol=1e-4)
    assert bundle.source["weights"] == path.name


def test_a_pickle_that_needs_more_is_refused_and_never_runs(factory: str, tmp_path: Path) -> None:
    torch.save({"conv.weight": _Code(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(SourceError, match=r"refused.*mkdir") as caught:
        load(factory, weights=tmp_path / "evil.pt")
    assert "safetensors" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


def test_wrong_weights_are_refused_with_what_does_not_fit(factory: str, tmp_path: Path) -> None:
    state = _state()
    state["head.weight"] = torch.zeros(5, 4)
    state["extra"] = state.pop("conv.bias")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"conv\.bias.*extra.*\(5, 4\) in the file, \(2, 4\) in the network"):
        load(factory, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_weights_are_refused(factory: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(_state(), path) if suffix == ".safetensors" else torch.save(_state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="damaged"):
        load(factory, weights=path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Nope", UsageError, "has no 'Nope'"),
        ("fails", SourceError, "no luck"),
        ("number", SourceError, "int"),
    ],
)
def test_a_factory_that_gives_no_network(
    name: str, error: type[Exception], message: str, factory: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        load(f"{tmp_path / 'models.py'}:{name}")


def test_a_module_factory(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").write_text(FACTORY)
    assert load("my_models:Net").input_shape == (3, 8, 8)
    assert load("my_models:Net", input_shape=(3, 10, 12)).input_shape == (3, 10, 12)


def test_pt2_files(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    save_pt2(export_program(network, (3, 8, 8)), tmp_path / "a.pt2")
    bundle = load(tmp_path / "a.pt2", preprocessing={"mean": (0.5,), "std": (0.25,)})
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(bundle.module()(x), network(x))
    assert bundle.preprocessing is not None
    assert bundle.preprocessing.size == (8, 8)
    assert bundle.preprocessing.std == (0.25,)

    fixed = torch.export.export(network, (torch.zeros(1, 3, 8, 8),))
    torch.export.save(fixed, tmp_path / "fixed.pt2")
    with pytest.raises(SourceError, match="fixed batch of 1"):
        load(tmp_path / "fixed.pt2")
    decomposed = export_program(network, (3, 8, 8)).run_decompositions()
    torch.export.save(decomposed, tmp_path / "core.pt2")
    with pytest.raises(SourceError, match=r"decomposed to core ATen \(it holds aten.convolution.default\)"):
        load(tmp_path / "core.pt2")


def test_a_pt2_is_loaded_as_torch_loads_it_and_python_is_left_as_it_was(tmp_path: Path) -> None:
    asked = typing.get_type_hints
    save_pt2(load("zoo:resnet20-cifar").program, tmp_path / "a.pt2")
    program, reference = load_pt2(tmp_path / "a.pt2"), torch.export.load(tmp_path / "a.pt2")
    assert program.graph_module.code == reference.graph_module.code
    assert str(program.graph_signature) == str(reference.graph_signature)
    assert str(program.range_constraints) == str(reference.range_constraints)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(program.module()(x), reference.module()(x))
    (tmp_path / "b.pt2").write_bytes((tmp_path / "a.pt2").read_bytes()[:-100])
    with pytest.raises(SourceError, match="damaged"):
        load_pt2(tmp_path / "b.pt2")
    assert typing.get_type_hints is asked


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("zoo:resnet20", UsageError, "resnet20-cifar"),
        ("nothing-here", UsageError, "does not exist"),
        ("weights.safetensors", UsageError, "holds weights, not a network"),
        ("missing.pt2", SourceError, "does not exist"),
        ("no_such_package_x:make", UsageError, "no_such_package_x"),
        ("missing.py:make", UsageError, "missing.py"),
    ],
)
def test_what_is_no_model(model: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(model)


def test_a_bundle_refuses_other_weights(tmp_path: Path) -> None:
    load("zoo:digits-cnn").save(tmp_path / "a")
    with pytest.raises(UsageError, match="weights of its own"):
        load(tmp_path / "a", weights=tmp_path / "w.safetensors")


def test_preprocessing_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="3 values for 1 channels"):
        load("zoo:digits-cnn", preprocessing={"mean": (0.1, 0.2, 0.3)})


@pytest.mark.parametrize("wrapped", [lambda y: (y,), lambda y: {"logits": y}, lambda y: [(y,)]])
def test_one_tensor_is_taken_out_of_what_a_network_returns(wrapped: Callable[[torch.Tensor], Any]) -> None:
    class Wrapping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return wrapped(self.layer(x))

    network, x = Wrapping().eval(), torch.randn(5, 6)
    module = load(network, input_shape=(6,)).module()
    assert torch.equal(module(x), network.layer(x))
    assert [name for name, _ in module.named_parameters()] == ["layer.weight", "layer.bias"]


def test_several_outputs_are_refused_at_the_door() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 1, x * 2

    with pytest.raises(SourceError, match="Two returns 2 values; edgekit takes networks that return one tensor"):
        load(Two(), input_shape=(6,))

"""The layers command: its table in narrow and wide terminals, JSON, and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from edgekit.benchmark.roofline import Roofline
from edgekit.cli import render
from edgekit.cli.layers import layers
from edgekit.errors import UsageError
from edgekit.export.run import export, record_of
from edgekit.runtimes.targets.target import TARGETS
from edgekit.testing.exporters import bundle_of

LINE = Roofline(
    threads=1, bytes_per_second=20e9, float32_macs_per_second=50e9, int8_macs_per_second=None, source="a test",
)  # fmt: skip
# Torch takes seconds to start.
FILES = ("--runtime", "onnxruntime")
command = typer.Typer()
command.command()(layers)


@pytest.fixture(autouse=True)
def known_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known line in place of the measured one, which takes seconds."""
    monkeypatch.setattr("edgekit.benchmark.layers.measure_roofline", lambda target, threads: LINE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a file and its twin."""
    made = bundle_of("residual").save(tmp_path_factory.mktemp("layers") / "net")
    (file,) = export(made, "onnx")
    for path in (file.path, record_of(file.path)):
        shutil.copy(path, path.with_name(path.name.replace("model", "twin")))
    assert made.path is not None
    return made.path


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_the_table_fits_its_terminal(bundle: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "stdout", Console(highlight=False, width=width))
    done = CliRunner().invoke(command, [str(bundle), "--runs", "3", *FILES])
    assert done.exit_code == 0, done.output
    table = done.stdout.partition("roofline, 1 thread")[0]
    assert max(map(len, table.splitlines())) <= width
    for word in ("stem", "conv2", "onnxruntime model.onnx", "onnxruntime twin.onnx", "sum", "whole, unprofiled"):
        assert word in table
    assert "MACs" in table
    # Given up first where there is no room.
    assert "bytes" in table or width == 80
    assert "50.0 GMAC/s in float32, int8 not measured (a test); 20.0 GB/s" in done.stdout


def test_the_longest_are_shown_and_the_others_summed(bundle: Path) -> None:
    done = CliRunner().invoke(command, [str(bundle), "--runs", "3", "--top", "2", "--runtime", "onnxruntime"])
    assert done.exit_code == 0, done.output
    rows = done.stdout.partition("sum ")[0].splitlines()[2:]
    assert len(rows) == 3
    assert rows[-1].startswith("(")
    assert "others)" in rows[-1]
    assert "torch" not in done.stdout


def test_json_is_the_whole_document(bundle: Path) -> None:
    done = CliRunner().invoke(command, [str(bundle), "--runs", "3", "--json", *FILES])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["roofline"]["float32_macs_per_second"] == 50e9
    assert [column["label"] for column in value["tables"][0]["columns"]] == ["net/model.onnx", "net/twin.onnx"]


def test_a_file_that_can_t_be_profiled_fails_the_command(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    done = CliRunner().invoke(command, [str(broken), str(bundle / "exports" / "model.onnx"), "--runs", "2"])
    assert done.exit_code == 1
    assert "failed" in done.stdout
    assert "broken.onnx" in done.stdout
    assert "stem" in done.stdout


def test_emulated_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "fake", "edgekit.testing.fakes:FakeTarget")  # type: ignore[arg-type]
    done = CliRunner().invoke(command, [str(bundle), "--target", "fake"])
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2

"""A changed weight is found out, and the first layer that differs is named; a kill leaves nothing half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BundleError, ParityError, UsageError
from edgekit.export.exporter import EXPORTERS, exporter_for
from edgekit.export.run import export, record_of, verify
from edgekit.program import attribute
from edgekit.testing.exporters import bundle_of


def _corrupt(path: Path, weight: np.ndarray) -> None:
    """Changes one weight in the file, found by its bytes in the order in which the format keeps them."""
    for file in (path, path.with_suffix(".bin")):
        content = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        # ncnn holds the negative where a layer's input or output is handed on negated.
        orders = [order for w in (weight, -weight) for order in ([w] if w.ndim == 2 else [w, w.transpose(0, 2, 3, 1)])]
        for order in orders:
            place = bytes(content).find(np.ascontiguousarray(order).tobytes())
            if place >= 0:
                last = place + int(np.abs(np.ascontiguousarray(order).reshape(-1)).argmax()) * order.itemsize
                content[last + order.itemsize - 1] ^= 0x80  # the sign
                file.write_bytes(bytes(content))
                return
    pytest.fail("the weight was not found in the file")


@pytest.mark.parametrize("layer", ["conv2", "head"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", EXPORTERS)
def test_a_corrupted_weight_is_named(name: str, precision: str, layer: str, tmp_path: Path) -> None:
    bundle = bundle_of("plain", precision).save(tmp_path / "bundle")
    (file,) = export(bundle, name)
    suffix = ".weight_int8" if precision == "int8" else ".weight"
    module = exporter_for(name).lower(bundle, precision).module
    _corrupt(file.path, attribute(module, layer + suffix).detach().numpy())
    with pytest.raises(ParityError, match=rf"SHA-256.*the first layer that differs is {layer}\b"):
        verify(file.path)


def test_the_command_line_gives_exit_code_1_and_no_traceback(tmp_path: Path) -> None:
    bundle = bundle_of("plain").save(tmp_path / "bundle")
    (file,) = export(bundle, "onnx")
    command = [sys.executable, "-m", "edgekit.cli.main", "verify", str(file.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _corrupt(
        file.path, attribute(exporter_for("onnx").lower(bundle, "float32").module, "conv1.weight").detach().numpy()
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the first layer that differs is conv1" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_can_not_be_verified_is_told(tmp_path: Path) -> None:
    bundle = bundle_of("plain").save(tmp_path / "bundle")
    with pytest.raises(UsageError, match="no exported files"):
        verify(tmp_path / "bundle")
    (file,) = export(bundle, "onnx", output=tmp_path / "elsewhere" / "out")
    with pytest.raises(UsageError, match="--bundle"):
        verify(file.path)
    assert verify(file.path, bundle=tmp_path / "bundle")[0]["path"] == str(file.path)
    other = bundle_of("grouped").save(tmp_path / "other")
    with pytest.raises(ParityError, match="another bundle"):
        verify(file.path, bundle=other.path)
    record_of(file.path).write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        verify(file.path, bundle=tmp_path / "bundle")
    record_of(file.path).unlink()
    with pytest.raises(UsageError, match="no record of a proof"):
        verify(file.path, bundle=tmp_path / "bundle")


@pytest.mark.parametrize("name", EXPORTERS)
def test_sigkill_in_the_middle_of_an_export_then_the_same_command(name: str, tmp_path: Path) -> None:
    exporter = exporter_for(name)
    files = {}
    for place in ("whole", "killed"):
        bundle_of("residual").save(tmp_path / place)
    command = [sys.executable, "-m", "edgekit.cli.main", "export", "--to", name]
    assert subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, check=False).returncode == 0
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    exports = tmp_path / "killed" / "exports"
    until = time.monotonic() + 120
    while not list(exports.glob(".*.exporting")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(exports.glob("model*")), "a file without proof was left behind"
    assert subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, check=False).returncode == 0
    for place in ("whole", "killed"):
        folder = tmp_path / place / "exports"
        files[place] = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files["whole"].keys() == files["killed"].keys()
    assert f"model{exporter.suffix}" in files["killed"]
    for file, content in files["whole"].items():
        if file.endswith(".parity.json"):
            # The same proof, figure by figure.
            assert json.loads(content) == json.loads(files["killed"][file])
        else:
            assert content == files["killed"][file], file

"""ARM CPUs under emulation: real aarch64 runtimes, the same outputs, and instructions counted by class."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit.benchmark import bench
from edgekit.compress.pipeline import compress
from edgekit.errors import UsageError
from edgekit.export.exporter import EXPORTERS
from edgekit.export.ncnn_model import read_param
from edgekit.export.run import export
from edgekit.runtimes.measure import Cell, Plan, measure
from edgekit.runtimes.runtime import Options, runtime_of_file
from edgekit.runtimes.targets import emulated_root, instructions
from edgekit.runtimes.targets.link import COUNTS, MARK
from edgekit.runtimes.targets.target import Target, target_for
from edgekit.sources.load import load
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of
from edgekit.testing.targets import TargetConformance

pytestmark = [pytest.mark.targets, pytest.mark.usefixtures("emulated_root")]


class TestEmulated(TargetConformance):
    """The suite, on the emulator."""

    @pytest.fixture(scope="class")
    def target(self) -> Target:
        return target_for("emulated:cortex-a76")


MACS = 2_097_280


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits network in float32 and int8."""
    folder = tmp_path_factory.mktemp("files")
    load("zoo:digits-cnn").save(folder / "whole")
    compress(load("zoo:digits-cnn"), "quantize:images=64", "digits", output=folder / "int8")
    found = {}
    for name, formats in (("whole", ["onnx"]), ("int8", ["onnx", "ncnn"])):
        for file in export(load(folder / name), formats, data="digits", images=16):
            found[f"{name}-{file.path.suffix[1:]}"] = file.path
    return found


@pytest.mark.parametrize(("cpu", "dot_products"), [("cortex-a72", False), ("cortex-a76", True)])
def test_int8_is_computed_by_dot_products_where_the_cpu_has_them(
    cpu: str, dot_products: bool, files: dict[str, Path]
) -> None:
    cells = [
        Cell(label=name, path=files[name], runtime=runtime)
        for name, runtime in (("int8-onnx", "onnxruntime"), ("int8-param", "ncnn"))
    ]
    x = np.load(files["int8-onnx"].parent.parent / "samples.npz")["inputs"][:1]
    for found in measure(cells, [x, x], target_for(f"emulated:{cpu}"), Plan()):
        assert found.error == ""
        assert found.rounds_ms == ()
        counted = instructions.mean(found.instructions)
        # One SDOT is sixteen multiply-adds. Kernels pad some layers, and compute small ones otherwise.
        expected = MACS / 16 if dot_products else 0
        assert 0.95 * expected <= counted["dot_product"] <= 1.1 * expected
        assert dot_products or counted["neon_integer"] > MACS / 16


def test_counts_are_the_same_in_another_process_and_float_takes_its_multiply_adds(files: dict[str, Path]) -> None:
    x = np.load(files["int8-onnx"].parent.parent / "samples.npz")["inputs"][:1]
    cells = [
        Cell(label="float", path=files["whole-onnx"], runtime="onnxruntime"),
        Cell(label="int8", path=files["int8-param"], runtime="ncnn"),
    ]
    target = target_for("emulated:cortex-a53")
    first, second = (
        [instructions.mean(found.instructions) for found in measure(cells, [x, x], target, Plan())] for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert instructions.spread([one, other]) < 0.005
    assert MACS / 4 < first[0]["neon_float"] < 1.1 * MACS / 4
    assert first[0]["dot_product"] == 0


def test_outputs_are_those_of_this_machine_and_bench_shows_no_time(files: dict[str, Path]) -> None:
    paths = [files["whole-onnx"], files["int8-onnx"]]
    (whole, int8), (here, int8_here) = (
        bench(paths, plan=Plan(rounds=3, runs=1, seconds=0), data="digits", images=32, target=target).rows
        for target in ("emulated:cortex-a76", "local")
    )
    for row in (whole, int8):
        told = row.to_dict()
        assert not [key for key in told if key.endswith("_ms")]
        assert told["instructions"]["total"] > MACS / 16
    assert int8.instructions_ratio is not None
    assert int8.instructions_ratio < 0.6
    assert int8.comparison is None
    np.testing.assert_allclose(whole.accuracy.logits, here.accuracy.logits, atol=1e-4)
    step = np.unique(np.diff(np.unique(int8_here.accuracy.logits))).min()
    assert np.abs(int8.accuracy.logits - int8_here.accuracy.logits).max() <= 2 * step


@pytest.mark.parametrize("network", ["depthwise", "inception", "residual"])
def test_int8_files_compute_there_what_they_compute_here(network: str, tmp_path: Path) -> None:
    """ncnn's depthwise layers in float and its int8 tensors with several readers (Split) among them."""
    x = networks.images(8).numpy()
    files = {
        file.path.suffix: file.path for file in export(bundle_of(network, "int8"), list(EXPORTERS), output=tmp_path)
    }
    assert set(files) == {".onnx", ".tflite", ".param"}
    layers = [layer.type for layer in read_param(files[".param"])]
    assert {"depthwise": "ConvolutionDepthWise", "inception": "Split", "residual": "Split"}[network] in layers
    for path in files.values():
        found = {}
        for place in ("local", "emulated:cortex-a53", "emulated:cortex-a76"):
            with target_for(place) as target, target.worker() as worker:
                worker.open(path, runtime_of_file(str(path)), Options())
                found[place] = np.concatenate([worker.run(image[None])[0] for image in x])
        here = found.pop("local")
        # Float layers add in another order: a logit may round to the next level of its grid.
        step = np.diff(np.unique(here)).min()
        assert len(np.unique(here)) > 20
        for there in found.values():
            assert np.abs(there - here).max() <= 1.01 * step
            assert (there != here).mean() < 0.1


def test_threads_and_torch_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(UsageError, match="one thread"):
        bench(tmp_path / "a.onnx", threads=(2,), target="emulated:cortex-a72")
    load("zoo:digits-cnn").save(tmp_path / "bare")
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(tmp_path / "bare", target="emulated:cortex-a72")


# Encodings by hand from the Arm ARM, C6 and C7; a region of them is run by the root's Python.
_BODY = {
    "fmla v0.4s, v1.4s, v2.4s": (0x4E22CC20, "neon_float"),
    "fmla v0.4s, v1.4s, v2.s[0]": (0x4F821020, "neon_float"),
    "fadd v0.4h, v1.4h, v2.4h": (0x0E421420, "neon_float"),
    "scvtf v0.4s, v1.4s": (0x4E21D820, "neon_float"),
    "faddp s0, v1.2s": (0x7E30D820, "neon_float"),
    "fmadd s0, s1, s2, s3": (0x1F020C20, "float"),
    "fmul d0, d1, d2": (0x1E620820, "float"),
    "sdot v0.4s, v1.16b, v2.16b": (0x4E829420, "dot_product"),
    "udot v0.4s, v1.16b, v2.16b": (0x6E829420, "dot_product"),
    "sdot v0.4s, v1.16b, v2.4b[0]": (0x4F82E020, "dot_product"),
    "smlal v0.8h, v1.8b, v2.8b": (0x0E228020, "neon_integer"),
    "mla v0.4s, v1.4s, v2.s[0]": (0x6F820020, "neon_integer"),
    "dup v0.4s, w1": (0x4E040C20, "neon_integer"),
    "movi v0.4s, #0": (0x4F000400, "neon_integer"),
    "ldr q0, [x1]": (0x3DC00020, "memory"),
    "str q0, [x1]": (0x3D800020, "memory"),
    "ldp x2, x3, [x1]": (0xA9400C22, "memory"),
    "ld1 {v0.4s}, [x1]": (0x4C407820, "memory"),
    "add x2, x2, x3": (0x8B030042, "integer"),
    "mul x2, x2, x3": (0x9B037C42, "integer"),
    "b .+4": (0x14000001, "branch"),
}
_RUN = """
import ctypes, mmap, struct, sys
words = [int(word, 16) for word in sys.argv[1:]]
page = mmap.mmap(-1, 16384, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(struct.pack(f"<{len(words)}I", *words))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(address + 8192)
"""


def test_every_instruction_is_counted_once_in_its_class(tmp_path: Path) -> None:
    def marked(begins: int) -> list[int]:
        # movz x8, #mark; movz x0, #begins; svc #0
        return [0xD2800008 | MARK << 5, 0xD2800000 | begins << 5, 0xD4000001]

    repeats = {text: 3 + position for position, text in enumerate(_BODY)}
    body = [_BODY[text][0] for text, count in repeats.items() for _ in range(count)]
    words = [0xAA0003E1, *marked(1), *body, *marked(0), 0xD65F03C0]  # mov x1, x0 … ret
    root = emulated_root.root()
    plugin = f"{instructions.plugin()},output={tmp_path / COUNTS},mark={MARK}"
    command = root.command("cortex-a76", ["-c", _RUN, *map(hex, words)], plugin)
    subprocess.run(command, env=root.environment(), check=True, cwd=tmp_path, timeout=120)
    expected = dict.fromkeys(instructions.CLASSES, 0) | {"integer": 2, "branch": 1}  # the closing mark's own
    for text, count in repeats.items():
        expected[_BODY[text][1]] += count
    assert json.loads((tmp_path / COUNTS).read_text()) == expected

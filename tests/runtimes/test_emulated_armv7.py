"""32-bit ARM CPUs under emulation: ncnn and tflite-runtime, the same outputs, and instructions of either set by class."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit.benchmark import bench
from edgekit.compress.pipeline import compress
from edgekit.export.run import export
from edgekit.runtimes.measure import Plan
from edgekit.runtimes.runtime import Options, runtime_of_file
from edgekit.runtimes.targets import emulated_root, emulated_site, instructions
from edgekit.runtimes.targets.check import check
from edgekit.runtimes.targets.emulated_cpus import ARMV7
from edgekit.runtimes.targets.link import COUNTS, MARK
from edgekit.runtimes.targets.target import Target, target_for
from edgekit.sources.load import load
from edgekit.testing.targets import TargetConformance

pytestmark = [pytest.mark.targets, pytest.mark.usefixtures("emulated_armv7_root")]

MACS = 2_097_280


class TestEmulatedArmv7:
    """What of the suite depends on the guest; how files travel and workers are killed is tried with the 64-bit CPUs."""

    @pytest.fixture(scope="class")
    def target(self) -> Target:
        return target_for("emulated:cortex-a7")

    test_describes_the_machine = TargetConformance.test_describes_the_machine
    test_runs_a_file = TargetConformance.test_runs_a_file
    test_every_worker_is_a_fresh_process = TargetConformance.test_every_worker_is_a_fresh_process
    test_a_crash = TargetConformance.test_a_crash_is_an_error_that_names_the_signal
    test_an_exit = TargetConformance.test_an_exit_is_an_error_with_its_code_and_last_words
    test_a_hang = TargetConformance.test_a_hang_is_an_error_in_time
    test_a_missing_library = TargetConformance.test_a_missing_library_is_told_with_its_remedy


def test_what_runs_there_and_what_has_no_wheel() -> None:
    found = check("emulated:cortex-a15")
    assert (found.facts["machine"], found.facts["cpu"]) == ("armv7l", "Cortex-A15")
    assert found.facts["cpu_flags"] == ["neon", "vfpv4"]
    assert found.runtimes["ncnn"]["usable"]
    assert found.runtimes["tflite"]["version"] == "tflite-runtime 2.14.0"
    assert "no wheel of it for 32-bit ARM" in found.runtimes["onnxruntime"]["install"]
    assert [wheel.partition("==")[0] for wheel in emulated_site.without(ARMV7)] == ["onnxruntime"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits network in float32 and int8."""
    folder = tmp_path_factory.mktemp("files")
    load("zoo:digits-cnn").save(folder / "whole")
    compress(load("zoo:digits-cnn"), "quantize:images=64", "digits", output=folder / "int8")
    return {
        f"{name}-{runtime_of_file(str(file.path))}": file.path
        for name in ("whole", "int8")
        for file in export(load(folder / name), ["tflite", "ncnn"], data="digits", images=16)
    }


def test_outputs_are_those_of_this_machine_and_instructions_are_counted(files: dict[str, Path]) -> None:
    with np.load(files["int8-tflite"].parent.parent / "samples.npz") as samples:
        x = samples["inputs"]
    there, here, counted = {}, {}, {}
    for name, path in files.items():
        runtime = name.partition("-")[2]
        with target_for("emulated:cortex-a7").worker(counting=True) as worker:
            worker.open(path, runtime, Options())
            there[name] = worker.run(x)[0]
            runs = worker.count(x[:1])[1]
        with target_for("local").worker() as worker:
            worker.open(path, runtime, Options())
            here[name] = worker.run(x)[0]
        assert instructions.spread(runs) < 0.005
        counted[name] = instructions.mean(runs)
        assert counted[name]["dot_product"] == 0, "these CPUs have none"
    for name in ("whole-tflite", "whole-ncnn"):
        np.testing.assert_allclose(there[name], here[name], atol=1e-4)
    # ncnn's file has the same scales, but hands out floats: its steps are of the same size.
    step = np.unique(np.diff(np.unique(here["int8-tflite"]))).min()
    assert step > 0.01
    for name in ("int8-tflite", "int8-ncnn"):
        assert np.abs(there[name] - here[name]).max() <= 2 * step
    # Four products of floats are one instruction, or eight of int8. ncnn takes Winograd's way for some layers.
    assert MACS / 4 < counted["whole-tflite"]["neon_float"] < 1.1 * MACS / 4
    assert MACS / 8 < counted["whole-ncnn"]["neon_float"] < 1.1 * MACS / 4
    assert MACS / 8 < counted["int8-tflite"]["neon_integer"] < 1.2 * MACS / 4
    assert MACS / 16 < counted["int8-ncnn"]["neon_integer"] < 1.2 * MACS / 4


def test_bench_shows_accuracy_and_counts_and_what_can_t_run(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    paths = [files["int8-tflite"], tmp_path / "model.onnx"]
    plan = Plan(rounds=3, runs=1, seconds=0)
    tflite, onnx = bench(paths, plan=plan, data="digits", images=16, target="emulated:cortex-a15").rows
    assert tflite.accuracy is not None
    assert tflite.accuracy.top1 > 90
    assert tflite.notes == ("XNNPACK was asked for and took no operator",), "this wheel is built without it"
    told = tflite.to_dict()
    assert told["instructions"]["total"] > MACS / 8
    assert not [key for key in told if key.endswith("_ms")]
    assert onnx.measurement.failure == "unavailable"
    assert "no wheel of it for 32-bit ARM" in onnx.measurement.error


# Encodings by hand from the Arm ARM (DDI 0406), chapters A6 to A8; T32's are the halfwords in their order.
_BODY: dict[str, tuple[int, tuple[int, ...], str]] = {
    "vmla.f32 q0, q1, q2": (0xF2020D54, (0xEF02, 0x0D54), "neon_float"),
    "vmla.f32 q0, q1, d4[0]": (0xF3A20144, (0xFFA2, 0x0144), "neon_float"),
    "vfma.f32 d0, d1, d2": (0xF2010C12, (0xEF01, 0x0C12), "neon_float"),
    "vcvt.f32.s32 q0, q1": (0xF3BB0642, (0xFFBB, 0x0642), "neon_float"),
    "vmla.f32 s0, s1, s2": (0xEE000A81, (0xEE00, 0x0A81), "float"),
    "vadd.f64 d0, d1, d2": (0xEE310B02, (0xEE31, 0x0B02), "float"),
    "vcvt.f32.s32 s0, s0": (0xEEB80AC0, (0xEEB8, 0x0AC0), "float"),
    "vmov r2, s0": (0xEE102A10, (0xEE10, 0x2A10), "float"),
    "vmov d0, r2, r3": (0xEC432B10, (0xEC43, 0x2B10), "float"),
    "vmov.32 d0[0], r2": (0xEE002B10, (0xEE00, 0x2B10), "neon_integer"),
    "vmov.i32 q0, #0": (0xF2800050, (0xEF80, 0x0050), "neon_integer"),
    "vdup.32 q0, r2": (0xEEA02B10, (0xEEA0, 0x2B10), "neon_integer"),
    "vmlal.s8 q0, d2, d3": (0xF2820803, (0xEF82, 0x0803), "neon_integer"),
    "vmull.s16 q0, d2, d3": (0xF2920C03, (0xEF92, 0x0C03), "neon_integer"),
    "vld1.32 {d0, d1}, [r1]": (0xF4210A8F, (0xF921, 0x0A8F), "memory"),
    "vldr s0, [r1]": (0xED910A00, (0xED91, 0x0A00), "memory"),
    "vstmia r1, {d0, d1}": (0xEC810B04, (0xEC81, 0x0B04), "memory"),
    "ldr r2, [r1]": (0xE5912000, (0x680A,), "memory"),
    "strd r2, r3, [r1]": (0xE1C120F0, (0xE9C1, 0x2300), "memory"),
    "ldrex r2, [r1]": (0xE1912F9F, (0xE851, 0x2F00), "memory"),
    "push {r2}": (0xE52D2004, (0xB404,), "memory"),
    "pop {r2}": (0xE49D2004, (0xBC04,), "memory"),
    "add r2, r2, r3": (0xE0822003, (0x18D2,), "integer"),
    "mul r2, r3, r2": (0xE0020293, (0x435A,), "integer"),
    "smlabb r2, r2, r3, r2": (0xE1022382, (0xFB12, 0x2203), "integer"),
    "bic r2, r2, r3": (0xE1C22003, (0x439A,), "integer"),
    "b to the next": (0xEAFFFFFF, (0xF000, 0xB800), "branch"),
    "blt to the next": (0xBAFFFFFF, (0xF2C0, 0x8000), "branch"),
    "dmb ish": (0xF57FF05B, (0xF3BF, 0x8F5B), "branch"),
}
# A function of the set: keeps r7, lets r1 point to what may be written, and marks a region around the body.
_A32 = (
    [0xE92D4080, 0xE1A01000],
    {1: [0xE3077A69, 0xE3A00001, 0xEF000000], 0: [0xE3077A69, 0xE3A00000, 0xEF000000]},
    [0xE8BD8080],
)
_T32 = (
    [0xB580, 0x4601],
    {1: [0xF647, 0x2769, 0x2001, 0xDF00], 0: [0xF647, 0x2769, 0x2000, 0xDF00]},
    [0xBD80],
)
_RUN = """
import ctypes, mmap, sys
page = mmap.mmap(-1, 16384, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex(sys.argv[2]))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address + int(sys.argv[1]))(address + 8192)
"""


@pytest.mark.parametrize("thumb", [False, True], ids=["A32", "T32"])
def test_every_instruction_is_counted_once_in_its_class(thumb: bool, tmp_path: Path) -> None:
    assert MARK == 0x7A69
    repeats = {text: 3 + position for position, text in enumerate(_BODY)}
    repeats["pop {r2}"] = repeats["push {r2}"]
    body: list[int] = []
    for text, count in repeats.items():
        body += [*_BODY[text][1]] * count if thumb else [_BODY[text][0]] * count
    begin, mark, end = _T32 if thumb else _A32
    words = [*begin, *mark[1], *body, *mark[0], *end]
    code = struct.pack(f"<{len(words)}{'H' if thumb else 'I'}", *words)
    root = emulated_root.root(ARMV7)
    plugin = f"{instructions.plugin()},output={tmp_path / COUNTS},mark={MARK}"
    # The lowest bit of a function's address says that it is T32.
    command = root.command("cortex-a7", ["-c", _RUN, str(int(thumb)), code.hex()], plugin)
    subprocess.run(command, env=root.environment(), check=True, cwd=tmp_path, timeout=120)
    expected = dict.fromkeys(instructions.CLASSES, 0) | {"integer": 2, "branch": 1}  # the closing mark's own
    for text, count in repeats.items():
        expected[_BODY[text][2]] += count
    assert json.loads((tmp_path / COUNTS).read_text()) == expected

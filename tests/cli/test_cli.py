"""The command as it is typed: help, JSON, exit codes, a narrow terminal."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.compress.step import STEPS

EDGEKIT = [sys.executable, "-m", "edgekit.cli.main"]
COMMANDS = ("inspect", "advise", "compress", "export", "verify", "bench", "demo", "target")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDGEKIT, *map(str, arguments)], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized bundle with ONNX and ncnn files, made by the commands."""
    bundle = tmp_path_factory.mktemp("cli") / "small"
    done = run("compress", "zoo:digits-cnn", "--data", "digits", "--step", "quantize:images=64", "-o", bundle)
    assert done.returncode == 0, done.stderr
    done = run("export", bundle, "--to", "onnx", "--to", "ncnn")
    assert done.returncode == 0, done.stderr
    return bundle


def test_help_answers_at_once_and_shows_examples_first() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = run("--help")
        times.append(time.perf_counter() - start)
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
    # The promise is 0.5 s on a quiet machine; tests share theirs.
    assert statistics.median(times) < 1.5
    for command in COMMANDS:
        text = run(command, "--help").stdout
        assert "Examples" in text
        assert text.index("Examples") < text.index("Options")


def test_version_and_no_command() -> None:
    from importlib.metadata import version

    assert run("--version").stdout.strip() == f"edgekit {version('edgekit')}"
    assert run().returncode == 2
    assert run("explode").returncode == 2


def test_shell_completion_is_there() -> None:
    assert "--install-completion" in run("--help").stdout


def test_inspect() -> None:
    found = json.loads(run("inspect", "zoo:resnet20-cifar", "--json").stdout)
    assert found["cost"]["macs"] == 40_551_040
    assert found["cost"]["layers"][0]["path"] == "conv1"
    text = run("inspect", "zoo:resnet20-cifar").stdout
    assert "40,551,040" in text
    assert "layer3.2.conv2" in text


def test_inspect_shows_which_channels_are_coupled() -> None:
    found = json.loads(run("inspect", "zoo:resnet20-cifar", "--groups", "--json").stdout)
    assert found["barriers"] == []
    groups = found["groups"]
    assert sum(group["channels"] for group in groups if group["made_by"] == ["layer1.0.conv1"]) == 16
    shared = next(group for group in groups if "conv1" in group["made_by"])
    assert {"layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"} <= set(shared["made_by"])
    assert "layer2.0.conv1" in shared["read_by"]
    assert [group["channels"] for group in groups if group["fixed"] and "linear" in group["made_by"]] == [10]
    text = run("inspect", "zoo:resnet20-cifar", "--no-layers", "--groups").stdout
    assert "groups of coupled channels" in text


def test_inspect_flags_what_breaks_the_rules_for_fast_networks() -> None:
    asked = ("inspect", "zoo:digits-cnn", "--no-layers", "--guidelines")
    found = json.loads(run(*asked, "--json").stdout)["guidelines"]
    flagged = {layer["path"].split()[0]: layer["flags"] for layer in found["layers"] if layer["flags"]}
    assert flagged == {"add": ["G4"], "depthwise": ["G4"]}
    text = run(*asked).stdout
    assert "G4: 2 flagged (✗: 3% or more)" in text
    assert f"element-wise operators move {found['element_wise_share']:.0%} of all elements" in text
    assert "`edgekit bench` measures" in text


def test_advise_writes_a_recipe_that_compress_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    asked = ("advise", "zoo:digits-cnn", "--data", "digits")
    done = run(*asked, "--goal", "macs=0.7", "--images", "100", "-o", recipe, COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert "measured: macs=0.7" in done.stdout
    assert "not measured" in done.stdout
    again = run(
        "compress", "zoo:digits-cnn", "--data", "digits", "--recipe", recipe, "-o", tmp_path / "small", "--json"
    )
    assert again.returncode == 0, again.stderr
    macs = json.loads(again.stdout)["steps"][0]["report"]["macs"]
    assert macs["after"] <= 0.7 * macs["before"]


def test_advise_says_what_is_wrong_with_a_goal(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    asked = ("advise", "zoo:digits-cnn", "--data", "digits", "-o", recipe)
    wrong = run(*asked, "--goal", "size=2")
    assert wrong.returncode == 2
    assert "between 0 and 1" in wrong.stderr
    unreachable = run(*asked, "--goal", "macs=0.01", "--images", "50", "--json")
    assert unreachable.returncode == 1
    assert json.loads(unreachable.stdout)["chosen"] is None
    assert not recipe.exists()


def test_inspect_forecasts_and_shows_sensitivities() -> None:
    asked = ("inspect", "zoo:digits-cnn", "--no-layers", "--target", "local")
    sensitivity = ("--sensitivity", "quantize:weight_bits=3,images=32", "--data", "digits", "--images", "50")
    found = json.loads(run(*asked, *sensitivity, "--json").stdout)
    assert {row["runtime"] for row in found["forecast"]["runtimes"]} == {"onnxruntime", "tflite", "ncnn", "torch"}
    assert {row["bits"] for row in found["sensitivity"]} == {3}
    text = run(*asked, *sensitivity).stdout
    assert "a forecast" in text
    assert "most sensitive layer first" in text
    refused = run("inspect", "zoo:digits-cnn", "--sensitivity", "quantize")
    assert refused.returncode == 2
    assert "--data" in refused.stderr
    assert run("inspect", "zoo:digits-cnn", "--sensitivity", "finetune", "--data", "digits").returncode == 2


def test_compress_json_and_list(small: Path, tmp_path: Path) -> None:
    done = run(
        "compress", "zoo:digits-cnn", "--data", "digits", "--step", "quantize:images=64", "-o", tmp_path / "b", "--json"
    )
    found = json.loads(done.stdout)
    assert found["precision"] == "int8"
    assert found["steps"][0]["report"]["int8_macs_share"] == 1.0
    listed = json.loads(run("compress", "--list", "--json").stdout)
    assert [row["name"] for row in listed] == list(STEPS)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("- step: quantize\n  images: 64\n")
    done = run("compress", "zoo:digits-cnn", "--data", "digits", "--recipe", recipe, "-o", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b" / "program.pt2").read_bytes() == (tmp_path / "c" / "program.pt2").read_bytes()


def test_export_says_what_was_proved(small: Path, tmp_path: Path) -> None:
    done = run("export", small, "--to", "onnx", "-o", tmp_path, "--json")
    (found,) = json.loads(done.stdout)
    assert found["parity"]["accuracy"]["file_top1"] > 95
    assert (tmp_path / "model.int8.onnx").is_file()
    text = run("export", small, "--to", "onnx", "-o", tmp_path).stdout
    assert "top-1 file" in text
    assert "model.int8.onnx" in text


def test_verify(small: Path) -> None:
    assert "2 files verified" in run("verify", small).stdout
    assert len(json.loads(run("verify", small, "--json").stdout)) == 2


def test_bench(small: Path) -> None:
    quick = ("--rounds", "3", "--runs", "3", "--seconds", "0")
    found = json.loads(run("bench", small, "--runtime", "onnxruntime", *quick, "--data", "digits", "--json").stdout)
    assert found["rows"][0]["runtime"] == "onnxruntime"
    assert found["rows"][0]["accuracy"]["top1"] > 95
    done = run("bench", small / "exports" / "model.int8.onnx", small / "exports" / "model.int8.ncnn.param", *quick)
    assert "time × [95 %]" in done.stdout
    assert any(word in done.stdout for word in ("faster", "slower", "no difference"))


def test_bench_lists_runtimes_with_their_settings_and_what_is_missing() -> None:
    shown = run("bench", "--list").stdout
    assert "onnxruntime works 1." in shown
    assert "\n  optimization = all | disabled | basic | extended\n" in shown
    found = json.loads(run("bench", "--list", "--json").stdout)
    for runtime in found.values():
        for setting, lacking in runtime["unusable"].items():
            assert f"\n  not here: {setting}: {lacking['reason']}\n    → {lacking['install']}\n" in shown


def test_bench_compare(small: Path, tmp_path: Path) -> None:
    quick = ("--rounds", "3", "--runs", "3", "--seconds", "0", "--runtime", "onnxruntime")
    for name in ("a.json", "b.json"):
        assert run("bench", small, *quick, "--data", "digits", "--per-class", "-o", tmp_path / name).returncode == 0
    done = run("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", "--fail-if-slower", "900%")
    assert done.returncode == 0, done.stderr
    assert "same file" in done.stdout
    slower = json.loads((tmp_path / "b.json").read_text())
    (row,) = slower["rows"]
    row["raw"]["rounds_ms"] = [[ms * 50 for ms in one] for one in row["raw"]["rounds_ms"]]
    row["p50_ms"] *= 50
    (tmp_path / "b.json").write_text(json.dumps(slower))
    done = run("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", "--fail-if-slower", "5%")
    assert done.returncode == 1
    assert "failed model.int8.onnx" in done.stdout
    found = json.loads(run("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", "--json").stdout)
    assert found["pairs"][0]["verdict"] == "slower"


def test_bench_limits_and_scenarios(small: Path) -> None:
    quick = ("--rounds", "3", "--runs", "3", "--seconds", "0")
    onnx, param = small / "exports" / "model.int8.onnx", small / "exports" / "model.int8.ncnn.param"
    done = run("bench", onnx, param, *quick, "--scenario", "offline", "--batch", "1", "--batch", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inputs/s" in done.stdout
    assert "not measured with 4" in done.stderr, "ncnn takes one at a time, and that is said"
    done = run("bench", onnx, *quick, "--memory-limit", "1M")
    assert done.returncode == 1
    assert done.stdout.startswith("memory ")
    done = run("bench", onnx, "--runtime", "onnxruntime", "--sustained", "0.08")
    assert done.returncode == 0, done.stderr
    assert "too short to tell" in done.stdout


def test_targets(tmp_path: Path) -> None:
    empty = {"EDGEKIT_CACHE": str(tmp_path / "cache"), "PATH": str(tmp_path)}
    listed = {one["kind"]: one for one in json.loads(run("target", "list", "--json", **empty).stdout)}
    assert listed["local"]["problem"] == ""
    assert "qemu-user" in listed["emulated"]["problem"]
    assert "edgekit target setup emulated" in run("target", "list", **empty).stderr
    checked = json.loads(run("target", "check", "local", "--json").stdout)
    assert checked["runtimes"]["onnxruntime"]["usable"]
    assert checked["facts"]["machine"]
    assert "onnxruntime" in run("target", "check").stdout
    failed = run("target", "check", "emulated:cortex-a76", **empty)
    assert failed.returncode == 1
    assert "not set up" in failed.stdout
    without_apt = run("target", "setup", "emulated", **empty)
    assert without_apt.returncode == 1
    assert "apt-get is not on the PATH" in without_apt.stderr
    assert run("target", "setup", "local").returncode == 2


def test_a_failed_measurement_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    done = run("bench", tmp_path / "broken.onnx", "--rounds", "3")
    assert done.returncode == 1
    assert "broken.onnx" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("inspect", "missing-folder"), 2, "does not exist"),
        (("inspect", "zoo:resnet"), 2, "Known:"),
        (
            ("compress", "zoo:digits-cnn", "--data", "digits", "--step", "quantise", "-o", "{}"),
            2,
            "Did you mean quantize",
        ),
        (("compress", "zoo:digits-cnn", "--step", "quantize", "-o", "{}"), 2, "--data"),
        (("compress", "zoo:digits-cnn", "--data", "digits", "--step", "quantize"), 2, "-o DIR is missing"),
        (
            ("compress", "zoo:digits-cnn", "--data", "folder:missing", "--step", "quantize", "-o", "{}"),
            1,
            "does not exist",
        ),
        (("compress", "zoo:digits-cnn", "--data", "digits", "--recipe", "no.yaml", "-o", "{}"), 2, "can't be read"),
        (
            ("compress", "zoo:digits-cnn", "--data", "digits", "--step", "prune-channels", "-o", "{}"),
            2,
            "exactly one goal",
        ),
        (("export", "zoo:digits-cnn", "--to", "onnx"), 2, "-o DIR"),
        (("export", "zoo:digits-cnn", "-o", "{}"), 2, "--to onnx"),
        (
            ("export", "zoo:digits-cnn", "--to", "onnx", "--precision", "int8", "--data", "digits", "-o", "{}"),
            1,
            "quantize",
        ),
        (("bench",), 2, "nothing to measure"),
        (("bench", "missing.onnx"), 2, "does not exist"),
        (("bench", "x.onnx", "--cpus", "a"), 2, "no list of CPUs"),
        (("bench", "x.onnx", "--memory-limit", "much"), 2, "no size"),
        (("bench", "x.onnx", "--fail-if-slower", "-1%"), 2, "no share"),
        (("bench", "x.onnx", "--scenario", "server"), 2, "single-stream, offline"),
        (("bench", "x.onnx", "--timeout", "-1"), 2, "must be positive"),
        (("bench", "compare", "a.json", "b.json"), 2, "a.json does not exist"),
        (("verify", "missing.onnx"), 2, "does not exist"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = run(*(argument.format(output) if argument == "{}" else argument for argument in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "something half-written was left"


def test_a_truncated_pt2_a_wrong_weights_file_and_an_image_of_the_wrong_size(tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from edgekit.program import export_program
    from edgekit.pt2 import save_pt2
    from edgekit.testing import networks

    save_pt2(export_program(networks.make("plain"), networks.INPUT_SHAPE), tmp_path / "net.pt2")
    content = (tmp_path / "net.pt2").read_bytes()
    (tmp_path / "net.pt2").write_bytes(content[: len(content) // 2])
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    for i in range(40):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), i * 5).save(folder / f"{i}.png")
    before = sorted(tmp_path.iterdir())
    cases = (
        (("inspect", tmp_path / "net.pt2"), "damaged"),
        (("inspect", "zoo:digits-cnn", "--weights", tmp_path / "w.safetensors"), "do not belong to this network"),
        (
            (
                "compress",
                "zoo:digits-cnn",
                "--data",
                f"folder:{tmp_path / 'images'}",
                "--step",
                "quantize",
                "-o",
                tmp_path / "o",
            ),
            "9×9 pixels, the network takes 8×8",
        ),
    )
    for arguments, message in cases:
        done = run(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before


def test_a_narrow_terminal_gets_every_figure(small: Path) -> None:
    import pty

    program = f"import os; os.environ['COLUMNS'] = '50'; import sys; sys.argv = ['edgekit', 'verify', {str(small)!r}]; "
    program += "from edgekit.cli.main import main; main()"
    main_end, other_end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=other_end, stderr=subprocess.DEVNULL)
    os.close(other_end)
    text = b""
    while True:
        try:
            block = os.read(main_end, 4096)
        except OSError:
            break
        if not block:
            break
        text += block
    assert process.wait() == 0
    shown = text.decode()
    assert "same top-1:" in shown
    assert "…" not in shown, "a figure was cut off"

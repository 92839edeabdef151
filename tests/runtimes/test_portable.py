"""A Python for devices that have none, sent to emulated ARM machines which hold a busybox and nothing else.

Over adb it is Android's real client and a protocol server, over ssh a real sshd; both with the shell of that machine. No phone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekit.cache import alone, cache_folder
from edgekit.cli.main import app
from edgekit.data.dataset import to_inputs
from edgekit.data.references import load_data
from edgekit.errors import PackagesError, TargetError, WorkerCrashError
from edgekit.export.run import export
from edgekit.runtimes.runtime import Options, runtime_of_file
from edgekit.runtimes.targets import debian, elf, portable, portable_archive
from edgekit.runtimes.targets.adb import AdbConnection, AdbTarget
from edgekit.runtimes.targets.check import check
from edgekit.runtimes.targets.emulated_cpus import ARM64, ARMV7
from edgekit.runtimes.targets.ssh import SshTarget
from edgekit.runtimes.targets.target import Target, target_for
from edgekit.sources.load import load
from edgekit.testing.adbd import Device, adb
from edgekit.testing.arm_board import ArmBoard, arm_board
from edgekit.testing.fakes import RUNTIME, write_fake
from edgekit.testing.sshd import sshd
from edgekit.testing.targets import X

BASE = "/data/local/tmp/edgekit"


def _quiet(done: int, total: int, text: str) -> None:
    """Progress that nobody looks at."""


@pytest.mark.parametrize(
    ("machine", "abis", "expected"),
    [
        ("aarch64", (), ARM64),
        ("aarch64", ("arm64-v8a", "armeabi-v7a"), ARM64),
        # A 64-bit kernel below an Android of 32 bits.
        ("aarch64", ("armeabi-v7a", "armeabi"), ARMV7),
        ("armv8l", (), ARMV7),
        ("armv7l", ("armeabi-v7a",), ARMV7),
        ("armv6l", (), None),
        ("x86_64", (), None),
    ],
)
def test_the_python_is_that_of_the_machine_s_applications(
    machine: str, abis: tuple[str, ...], expected: object
) -> None:
    assert portable.architecture_of(portable.Device(machine, abis)) is expected


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf to compare with")
def test_what_a_program_is_linked_with_is_what_readelf_says() -> None:
    program = Path("/bin/sh").resolve()
    told = subprocess.run(["readelf", "-Wdl", program], capture_output=True, text=True, check=True).stdout
    found = elf.read(program)
    assert found is not None
    assert list(found.needed) == [line.split("[")[1][:-1] for line in told.splitlines() if "(NEEDED)" in line]
    assert f"interpreter: {found.loader}]" in told
    assert elf.read(Path(__file__)) is None


def _tools_of_android(folder: Path) -> dict[str, str]:
    """Variables that bring Android's shell and tools onto the PATH, in Debian's builds: mksh and toybox."""
    unpacked = cache_folder() / "tests" / "toybox"
    with alone("toybox"):
        if not unpacked.is_dir():
            debian.unpack(("toybox", "mksh"), debian.host_architecture(), unpacked, _quiet)
    toybox = unpacked / "bin" / "toybox"
    listed = subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split()
    for command in listed:
        (folder / command).symlink_to(toybox)
    (folder / "sh").unlink(missing_ok=True)
    (folder / "sh").symlink_to(unpacked / "bin" / "mksh")
    return {"PATH": str(folder)}


@pytest.mark.parametrize("tools", ["this machine's", pytest.param("Android's", marks=pytest.mark.targets)])
def test_a_shell_unpacks_the_whole_or_fails(tools: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    try:
        variables = _tools_of_android(tmp_path / "bin") if tools == "Android's" else {"PATH": os.environ["PATH"]}
    except PackagesError as error:
        pytest.skip(f"toybox can't be had: {error.what}")
    shell = shutil.which("sh", path=variables["PATH"])
    assert shell is not None
    (large := tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(9_000_000))
    (program := tmp_path / "program").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    deep = "usr/lib/" + "/".join(["a_folder_with_a_long_name"] * 5) + "/module.py"
    assert len(deep) > 100, "it takes two fields of a tar header"
    files = {"lib/large": large, "usr/bin/python3.11": program, deep: program}
    portable_archive._pack(files, tmp_path / "packed", ARM64, _quiet)
    chunks = sorted((tmp_path / "packed").iterdir())
    assert len(chunks) == 3

    def unpack(*parts: Path) -> subprocess.CompletedProcess[str]:
        words = [shell, "-c", portable._UNPACK, "sh", str(tmp_path / "there"), *map(str, parts)]
        return subprocess.run(words, env=variables, capture_output=True, text=True, check=False)

    assert unpack(*chunks).stderr == ""
    for name, path in files.items():
        there = tmp_path / "there" / name
        assert there.read_bytes() == path.read_bytes()
        assert os.access(there, os.X_OK) == os.access(path, os.X_OK)
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"lib", "usr", "tmp", portable_archive.LAST}
    assert unpack(*chunks[:-1]).returncode != 0
    damaged = bytearray(chunks[1].read_bytes())
    damaged[2_000_000] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    assert unpack(chunks[0], tmp_path / "damaged", chunks[2]).returncode != 0

    told = subprocess.run(
        [shell, "-c", portable._ASK, "sh", str(tmp_path)], env=variables, capture_output=True, text=True, check=True
    ).stdout
    assert "lacks" not in told
    assert int(told.partition("room ")[2].split()[3]) > 0


@pytest.fixture(scope="module")
def phone(emulated_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArmBoard]:
    """An ARM machine laid out as Android is."""
    try:
        with arm_board(tmp_path_factory.mktemp("phone")) as found:
            yield found
    except PackagesError as error:
        pytest.skip(error.what)


@pytest.fixture(scope="module")
def name(phone: ArmBoard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its name as a target."""
    with tempfile.TemporaryDirectory(prefix="adb-") as folder, pytest.MonkeyPatch.context() as patch:
        try:
            with adb(Path(folder)) as variables:
                for key, value in variables.items():
                    patch.setenv(key, value)
                for key in ("EDGEKIT_TARGET_PYTHON", "EDGEKIT_TARGET_FOLDER"):
                    patch.delenv(key, raising=False)
                device = Device(tmp_path_factory.mktemp("device"), phone)
                AdbConnection("").local(["adb", "connect", device.serial], 60)
                yield f"adb:{device.serial}"
                device.vanish()
        except PackagesError as error:
            pytest.skip(f"no adb: {error.what}")


@pytest.fixture(scope="module")
def set_up(name: str, phone: ArmBoard) -> dict[str, Any]:
    """What set-up told. It was cut off after five parts, and went on."""
    put, count = AdbConnection.put, itertools.count()

    def cut_off(self: AdbConnection, path: Path, there: str) -> None:
        if next(count) == 5:
            raise KeyboardInterrupt
        put(self, path, there)

    assert not _found(phone, "*python*"), "it shall have none of its own"
    assert not _found(phone, "ld-linux-[aA]*")
    looked = check(name)
    assert f"there is no Python on {name} " in looked.problem
    assert f"Run: edgekit target setup {name}  (" in looked.remedy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdbConnection, "put", cut_off)
        with pytest.raises(KeyboardInterrupt):
            AdbTarget.setup(_quiet, name.partition(":")[2])
    (parts,) = _listed(phone, BASE)
    assert parts.endswith(".parts")
    assert _listed(phone, f"{BASE}/{parts}") == {f"{number:04d}" for number in range(5)}
    return AdbTarget.setup(_quiet, name.partition(":")[2])


def _found(phone: ArmBoard, pattern: str) -> list[Path]:
    return [path for top in ("system", "data", "lib", "usr") for path in phone.path(f"/{top}").rglob(pattern)]


def _listed(phone: ArmBoard, folder: str) -> set[str]:
    return set(os.listdir(phone.path(folder)))


@pytest.mark.targets
def test_an_interrupted_set_up_goes_on_and_a_second_one_sends_nothing(
    name: str, phone: ArmBoard, set_up: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = portable_archive.archive(ARM64, _quiet)
    assert set_up["sent_bytes"] == packed.packed_bytes - 5 * packed.chunks[0].stat().st_size
    assert set_up["versions"] | {"machine": "aarch64"} == set_up["versions"]
    assert {"python", "numpy", "onnxruntime", "ai_edge_litert", "ncnn"} <= set(set_up["versions"])
    folder = f"python-{packed.digest}"
    assert _listed(phone, BASE) == {"python3", folder}
    assert 100e6 < set_up["size_bytes"] < 200e6
    assert not [path for path in phone.path(f"{BASE}/{folder}").rglob("*") if path.is_symlink()]
    # An older one, and what a set-up that was cut off left of it, go.
    for old in ("python-0123", "python-4567.parts"):
        phone.path(f"{BASE}/{old}").mkdir()
    put, sent = AdbConnection.put, []

    def recorded(self: AdbConnection, path: Path, there: str) -> None:
        sent.append(there)
        put(self, path, there)

    monkeypatch.setattr(AdbConnection, "put", recorded)
    result = CliRunner().invoke(app, ["target", "setup", name])
    assert f"{name} is set up in {BASE}/{folder} (" in result.output.replace("\n", "")
    assert sent == [f"{BASE}/python3.new"]
    assert _listed(phone, BASE) == {"python3", folder}


@pytest.mark.targets
def test_a_python_that_starts_another_starts_its_own(name: str, set_up: dict[str, Any]) -> None:
    program = (
        "import subprocess, sys; print(sys.executable, sys.prefix, flush=True); "
        "subprocess.run([sys.executable, '-c', 'import numpy; print(numpy.__file__)'], check=True)"
    )
    connection = target_for(name).connection  # type: ignore[attr-defined]
    # What Android's shell may have set for its own libraries does no harm.
    done = connection.run(["env", "LD_LIBRARY_PATH=/system/lib64", "PYTHONPATH=/x", f"{BASE}/python3", "-c", program])
    itself, numpy = done.stdout.splitlines()
    assert itself == f"{BASE}/python3 {set_up['folder']}/usr"
    assert numpy.startswith(set_up["folder"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits network in three formats."""
    folder = tmp_path_factory.mktemp("files")
    load("zoo:digits-cnn").save(folder / "whole")
    exported = export(load(folder / "whole"), ["onnx", "tflite", "ncnn"], data="digits", images=16)
    return {str(runtime_of_file(str(file.path))): file.path for file in exported}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Eight of the digits."""
    split = load_data("digits").test
    return np.asarray(to_inputs(split.images(split.spread(8)), load("zoo:digits-cnn").preprocessing))


@pytest.fixture(scope="module")
def target(name: str, set_up: dict[str, Any]) -> Iterator[Target]:
    """The phone, with its Python."""
    with target_for(name) as found:
        yield found


@pytest.mark.targets
def test_outputs_there_are_those_of_this_machine(target: Target, files: dict[str, Path], x: np.ndarray) -> None:
    assert sorted(files) == ["ncnn", "onnxruntime", "tflite"]
    assert target.describe()["cpu"] == "Cortex-A72"
    for runtime, path in files.items():
        with target.worker() as there, target_for("local").worker() as here:
            there.open(path, runtime, Options())
            here.open(path, runtime, Options())
            expected = here.run(x)[0]
            assert np.ptp(expected) > 1
            np.testing.assert_allclose(there.run(x)[0], expected, atol=1e-4)


@pytest.mark.targets
def test_a_crash_there_keeps_its_name(target: Target, tmp_path: Path) -> None:
    with target.worker() as worker:
        worker.open(write_fake(tmp_path / "crash.fake", crash="invoke"), RUNTIME, Options())
        with pytest.raises(WorkerCrashError, match=r"crash\.fake was killed by SIGSEGV"):
            worker.run(X)


@pytest.mark.targets
def test_what_is_usable_there_is_told(name: str, set_up: dict[str, Any]) -> None:
    found = check(name)
    assert found.problem == ""
    assert [one for one in found.runtimes if found.runtimes[one]["usable"]] == ["onnxruntime", "tflite", "ncnn"]


@pytest.mark.targets
def test_a_full_disk_leaves_nothing_there(name: str, phone: ArmBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_TARGET_FOLDER", "/small/edgekit")
    serial = name.partition(":")[2]
    with pytest.raises(
        TargetError, match=r"disk of adb:\S+ is full: the Python needs \d+ MB in /small/edgekit, and 6\d MB"
    ):
        AdbTarget.setup(_quiet, serial)
    assert _listed(phone, "/small/edgekit") == set()
    # A disk that does not tell its room, or that another program fills meanwhile.
    asked = portable.asked
    monkeypatch.setattr(portable, "asked", lambda *at: dataclasses.replace(asked(*at), room_bytes=None))
    with pytest.raises(TargetError, match=r"disk of adb:\S+ is full: the Python could not be sent") as caught:
        AdbTarget.setup(_quiet, serial)
    assert "nothing was left half-written" in caught.value.remedy
    assert _listed(phone, "/small/edgekit") == set()


@pytest.mark.targets
def test_one_that_does_not_run_there_does_not_stay(
    name: str, phone: ArmBoard, set_up: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = set_up["folder"].rpartition("/")[2]
    monkeypatch.setenv("EDGEKIT_TARGET_FOLDER", "/data/damaged")
    shutil.copytree(phone.path(set_up["folder"]), phone.path("/data/damaged") / folder, copy_function=os.link)
    phone.path(f"/data/damaged/{folder}/lib/libc.so.6").unlink()
    with pytest.raises(TargetError, match=r"does not run on adb:\S+: .*libc\.so\.6") as caught:
        AdbTarget.setup(_quiet, name.partition(":")[2])
    assert "sends it anew" in caught.value.remedy
    assert _listed(phone, "/data/damaged") == set()


@pytest.mark.targets
@pytest.mark.usefixtures("emulated_armv7_root")
def test_a_32_bit_board_over_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], x: np.ndarray
) -> None:
    for key in ("EDGEKIT_TARGET_PYTHON", "EDGEKIT_TARGET_FOLDER"):
        monkeypatch.delenv(key, raising=False)
    with tempfile.TemporaryDirectory(prefix="sshd-") as folder, contextlib.ExitStack() as stack:
        try:
            board = stack.enter_context(arm_board(tmp_path, "/bin", "cortex-a7"))
            server = stack.enter_context(sshd(Path(folder), board=board))
        except PackagesError as error:
            pytest.skip(error.what)
        monkeypatch.setenv("EDGEKIT_SSH_CONFIG", str(server.config))
        monkeypatch.setenv("EDGEKIT_TARGET_FOLDER", "/data/edgekit")
        made = SshTarget.setup(_quiet, server.place)
        assert (made["versions"]["machine"], made["versions"]["onnxruntime"]) == ("armv7l", "has no wheel for armv7l")
        with target_for(f"ssh:{server.place}") as target, target.worker() as there:
            there.open(files["tflite"], "tflite", Options())
            with target_for("local").worker() as local:
                local.open(files["tflite"], "tflite", Options())
                np.testing.assert_allclose(there.run(x)[0], local.run(x)[0], atol=1e-4)

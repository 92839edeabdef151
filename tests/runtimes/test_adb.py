"""adb, with Android's real client; the device is a protocol server on loopback with this machine's shell, and no Android."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import PackagesError, TargetError, UsageError, WorkerCrashError
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets import portable
from edgekit.runtimes.targets.adb import AdbConnection, AdbTarget, device_facts
from edgekit.runtimes.targets.check import check
from edgekit.runtimes.targets.target import Target, target_for
from edgekit.testing.adbd import Device, adb
from edgekit.testing.fakes import RUNTIME, write_fake
from edgekit.testing.targets import TargetConformance, X

pytestmark = pytest.mark.targets


@pytest.fixture(scope="module")
def client() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="adb-") as name, pytest.MonkeyPatch.context() as patch:
        try:
            with adb(Path(name)) as variables:
                for key, value in variables.items():
                    patch.setenv(key, value)
                patch.setenv("EDGEKIT_TARGET_PYTHON", sys.executable)
                patch.setenv("EDGEKIT_TARGET_FOLDER", f"{name}/device")
                yield
        except PackagesError as error:
            pytest.skip(f"no adb: {error.what}")


@pytest.fixture(scope="module")
def device(client: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    yield from _connected(tmp_path_factory.mktemp("device"))


def _connected(folder: Path) -> Iterator[Device]:
    made = Device(folder)
    AdbConnection("").local(["adb", "connect", made.serial], 60)
    yield made
    made.vanish()


class TestAdbToALoopbackServer(TargetConformance):
    """The suite, over adb's protocol."""

    @pytest.fixture(scope="class")
    def target(self, device: Device) -> Iterator[Target]:
        with target_for(f"adb:{device.serial}") as target:
            yield target


def test_nothing_is_left_there_but_the_worker(device: Device, tmp_path: Path) -> None:
    with target_for(f"adb:{device.serial}") as target, target.worker() as worker:
        worker.open(write_fake(tmp_path / "a.fake"), RUNTIME, Options())
        assert worker.run(X)[0].shape == (2, 1)
    assert os.listdir(os.environ["EDGEKIT_TARGET_FOLDER"]) == ["kits"]


def test_only_the_client_has_another_home_folder(device: Device) -> None:
    command = shutil.which("adb")
    assert command is not None
    assert (Path(command).parent / ".android" / "adbkey").is_file(), "its keys"
    assert Path.home() != Path(command).parent, "the cache of the tests is found by it"


def test_a_full_disk_there_is_a_clear_error_and_leaves_nothing(device: Device, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(bytes(1_000_000))
    (tmp_path / "there.part").symlink_to("/dev/full")
    connection = AdbConnection(device.serial)
    with pytest.raises(TargetError, match=r"disk of adb:\S+ is full: model\.bin \(1000000 bytes\)"):
        connection.put(tmp_path / "model.bin", str(tmp_path / "there"))
    assert sorted(os.listdir(tmp_path)) == ["model.bin"]


def test_a_device_that_vanishes_is_a_clear_error(client: None, tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    for device in _connected(tmp_path / "device"):
        with target_for(f"adb:{device.serial}") as target, target.worker() as worker:
            worker.open(write_fake(tmp_path / "hang.fake", hang="invoke"), RUNTIME, Options())
            device.vanish()
            with pytest.raises((WorkerCrashError, TargetError), match="connection"):
                worker.run(X)
        assert "no connection to adb:" in check(f"adb:{device.serial}").problem


def test_what_is_missing_is_told_with_what_to_do(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"adb:{device.serial}"
    assert check(name).runtimes["onnxruntime"]["usable"]
    monkeypatch.setenv("EDGEKIT_TARGET_PYTHON", "no-such-python")
    assert "no Python" in check(name).problem
    found = check("adb:no-such-device")
    assert "not found" in found.problem
    assert "adb devices" in found.remedy
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no adb on the PATH" in check(name).problem
    with pytest.raises(UsageError, match="no serial number"):
        target_for("adb:-e")


def test_a_machine_that_no_python_is_sent_to_is_told_what_to_install(device: Device) -> None:
    machine = platform.machine()
    if machine in ("aarch64", "armv7l"):
        pytest.skip("this machine is one that a Python is sent to")
    with pytest.raises(
        TargetError, match=rf"adb:\S+ is {machine}, and edgekit brings .* aarch64 and armv7l only"
    ) as caught:
        AdbTarget.setup(lambda done, total, text: None, device.serial)
    assert "pip install numpy" in caught.value.remedy


def test_a_shell_without_tar_is_told_before_anything_is_sent(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "asked", lambda *at: portable.Device("aarch64", lacks=("tar", "gzip")))
    with pytest.raises(TargetError, match=r"shell of adb:\S+ has no tar and no gzip") as caught:
        AdbTarget.setup(lambda done, total, text: None, device.serial)
    assert "busybox" in caught.value.remedy


def test_facts_of_the_device(device: Device) -> None:
    facts = target_for(f"adb:{device.serial}").describe()
    assert (facts["device"], facts["android"]) == ("edgekit Loopback", "14 / API 34")
    assert (facts["battery_percent"], facts["battery_temperature_c"], facts["charging"]) == (87, 30.1, True)
    assert facts["thermal_status"] == "light"


def test_big_and_little_cores_are_told() -> None:
    little, big = (f"CPU implementer\t: 0x41\nCPU part\t: {p}\nFeatures\t: asimd asimddp\n" for p in ("0xd05", "0xd0b"))
    facts = device_facts(
        f"--edgekit cpuinfo\n{little * 4}{big * 2}--edgekit uname\nLinux 5.10.1 aarch64\n--edgekit cores\n0-5\n"
        "--edgekit highest\n1800000\n1800000\n1800000\n1800000\n2400000\n2400000\n--edgekit memory\nMemTotal: 1000 kB\n"
        "--edgekit governors\nschedutil\nschedutil\n--edgekit load\n0.5 0.4 0.3 1/2 3\n"
    )
    assert facts["cpu"] == "4 × Cortex-A55, 2 × Cortex-A76"
    assert facts["clusters"] == {"1800000 kHz": 4, "2400000 kHz": 2}
    assert (facts["cores"], facts["machine"], facts["governor"]) == (6, "aarch64", "schedutil")
    assert facts["memory_bytes"] == 1_024_000
    assert facts["battery_percent"] is None
    assert facts["charging"] is None

"""Set-up of targets without a network: where things are kept, and what a set-up that fails or is cut off leaves."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekit.cache import cache_folder
from edgekit.errors import PackagesError, TargetError, UsageError
from edgekit.runtimes.facts import cpu_facts
from edgekit.runtimes.onnxruntime import OnnxRuntime
from edgekit.runtimes.targets import debian, emulated_root, emulated_site, instructions, kit
from edgekit.runtimes.targets.check import kinds
from edgekit.runtimes.targets.emulated_cpus import ARMV7, CPUS
from edgekit.runtimes.targets.link import COUNTS, Link, SameDisk
from edgekit.testing.fakes import RUNTIME

# Stands for apt: it downloads what it is asked for, and says what apt says when it can't.
_APT = """#!/bin/sh
for word in "$@"; do case "$word" in Dir::Cache=*) cache="${word#Dir::Cache=}";; esac; done
case "$*" in
  *indextargets*) echo "Other|http://other/|other"; echo "Debian|http://mirror/debian/|bookworm"; exit 0;;
  *update*) test -e "$BROKEN" && { echo "W: something"; echo "E: Could not reach the mirror" >&2; exit 100; }; exit 0;;
esac
for name in one two; do echo "$name" >"$cache/archives/$name.deb"; done
"""
_DPKG = """#!/bin/sh
test -e "$BROKEN" && { echo "dpkg-deb: error: cut off" >&2; exit 2; }
cp "$2" "$3/"
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that, when it exists, makes apt or dpkg-deb fail."""
    (tmp_path / "bin").mkdir()
    for name, script in (("apt-get", _APT), ("dpkg-deb", _DPKG)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BROKEN", str(tmp_path / "broken"))
    for name in (debian.MIRROR, debian.SUITE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "broken"


def _unpack() -> Path:
    folder = cache_folder() / "emulated" / "root"
    debian.unpack(("python3",), "arm64", folder, lambda done, total, text: None)
    return folder


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGEKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "edgekit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edgekit"
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_debian_is_found_among_apt_s_sources(broken: Path) -> None:
    assert debian.source() == debian.Source("http://mirror/debian/", "bookworm")
    assert debian.source("bullseye") == debian.Source("http://mirror/debian/", "bullseye")


def test_a_mirror_out_of_reach_is_told_in_apt_s_words(broken: Path) -> None:
    broken.touch()
    with pytest.raises(TargetError, match="exit code 100: E: Could not reach the mirror") as caught:
        _unpack()
    assert debian.MIRROR in caught.value.remedy


def test_a_name_that_the_mirror_has_not_is_no_lack_of_a_network(broken: Path, tmp_path: Path) -> None:
    """Tests of emulated boards are skipped where packages can't be fetched: a wrong name of ours must not look like it."""
    apt = tmp_path / "bin" / "apt-get"
    apt.write_text(_APT.replace("for name in", 'echo "E: Unable to locate package python3" >&2; exit 100\nfor name in'))
    with pytest.raises(TargetError, match="Unable to locate package python3") as caught:
        _unpack()
    assert not isinstance(caught.value, PackagesError)
    apt.write_text(_APT.replace("for name in", 'echo "E: Failed to fetch http://mirror" >&2; exit 100\nfor name in'))
    with pytest.raises(PackagesError, match="Failed to fetch"):
        _unpack()


def test_an_unpacking_that_is_cut_off_leaves_nothing_and_the_next_goes_on(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "apt-get").write_text(_APT.replace('test -e "$BROKEN"', "false"))
    broken.touch()
    with pytest.raises(TargetError, match="cut off"):
        _unpack()
    place = cache_folder() / "emulated"
    assert list(place.iterdir()) == []
    assert len(list((cache_folder() / "downloads").rglob("*.deb"))) == 2, "what was downloaded is kept"
    broken.unlink()
    assert sorted(path.name for path in _unpack().iterdir()) == ["one.deb", "two.deb"]
    assert list((cache_folder() / "downloads").iterdir()) == []


def test_what_no_script_links_is_linked(broken: Path) -> None:
    folder = cache_folder() / "root"
    debian.unpack(("python3",), "armhf", folder, lambda done, total, text: None, links={"lib.so": "one.deb"})
    assert (folder / "lib.so").read_text() == "one\n"


def test_a_wheel_that_the_index_has_not_is_left_out_and_told(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_folder() / "emulated" / "armv7"
    python = folder / "root" / "usr" / "bin" / "python3.11"
    python.parent.mkdir(parents=True)
    python.touch()
    said = {"onnxruntime": "ERROR: Connection broken"}
    asked: list[Sequence[str]] = []

    def pip(words: Sequence[str]) -> list[str]:
        asked.append(words)
        return [said[name] for name in said if words[-1].startswith(name)]

    monkeypatch.setattr(emulated_site, "_pip", pip)
    with pytest.raises(PackagesError, match=r"could not fetch onnxruntime.*: ERROR: Connection broken"):
        emulated_site.fill(ARMV7, lambda done, total, text: None)
    assert not (folder / "site").exists()
    said["onnxruntime"] = "ERROR: No matching distribution found for onnxruntime"
    emulated_site.fill(ARMV7, lambda done, total, text: None)
    assert [name.partition("==")[0] for name in emulated_site.without(ARMV7)] == ["onnxruntime"]
    assert emulated_root.missing(ARMV7) == ["qemu-user", "the CPUs' roots"]
    assert "--platform=manylinux_2_31_armv7l" in asked[0]
    said["ncnn"] = "ERROR: Could not find a version that satisfies the requirement ncnn==9 (from versions: 1.0, 1.1)"
    with pytest.raises(TargetError, match="has other versions of a wheel") as caught:
        emulated_site.fill(ARMV7, lambda done, total, text: None)
    assert not isinstance(caught.value, PackagesError)
    said["ncnn"] = "ERROR: No matching distribution found for ncnn"
    with pytest.raises(PackagesError, match="could not fetch the armv7l wheels"):
        emulated_site.fill(ARMV7, lambda done, total, text: None)


def test_the_line_that_installs_a_runtime_is_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: OnnxRuntime) -> str:
        raise ImportError("none")

    monkeypatch.setattr(OnnxRuntime, "version", fail)
    assert OnnxRuntime().availability().install == "pip install onnxruntime"
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    assert "no wheel of it for 32-bit ARM" in OnnxRuntime().availability().install


def test_counts_with_instructions_that_no_one_knew_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps(dict.fromkeys(instructions.CLASSES, 1))
    odd = json.dumps(dict.fromkeys(instructions.CLASSES, 1) | {instructions.UNKNOWN: 3})
    monkeypatch.setattr(Link, "_call", lambda self, request, timeout_s: {"facts": {}})
    with subprocess.Popen(["true"]) as process:
        link = Link(process, SameDisk(), tmp_path, tmp_path / "log")
        (tmp_path / COUNTS).write_text(f"{line}\n{line}\n{odd}\n")
        with pytest.raises(TargetError, match="does not know 3 of them"):
            link.count(np.zeros((1, 1)), runs=1)
        (tmp_path / COUNTS).write_text(f"{odd}\n{line}\n{line}\n")
        assert link.count(np.zeros((1, 1)), runs=1)[1] == [dict.fromkeys(instructions.CLASSES, 0)]


def test_the_mean_of_counts_is_that_of_the_middle() -> None:
    # An allocator that takes turns, and one run with something else in it.
    totals = (100, 102, 100, 102, 100, 190)
    runs = [dict.fromkeys(instructions.CLASSES, 0) | {"memory": number} for number in totals]
    assert instructions.mean(runs)["memory"] == 101
    assert instructions.total(instructions.mean(runs[:1])) == 100
    assert instructions.spread(runs[:2]) == pytest.approx(2 / 101)


def test_what_is_missing_is_named(broken: Path) -> None:
    assert "an aarch64 root with Python" in emulated_root.missing()
    with pytest.raises(TargetError, match=r"not set up: .* lacks .*wheels in the versions installed here") as caught:
        emulated_root.root()
    assert "edgekit target setup emulated  (" in caught.value.remedy
    with pytest.raises(TargetError, match=r"lacks .*an armv7l root with Python") as caught:
        emulated_root.root(ARMV7)
    assert "edgekit target setup emulated:cortex-a7  (" in caught.value.remedy
    told = {one["kind"]: one for one in kinds()}
    assert "aarch64 root" in told["emulated"]["problem"]
    assert "armv7l root" in told["emulated:cortex-a7"]["problem"]
    assert told["emulated:cortex-a7"]["remedy"] == "edgekit target setup emulated:cortex-a7"


def test_a_runtime_of_one_s_own_travels_with_its_packages() -> None:
    files = kit.module_files(RUNTIME)
    assert sorted(files) == ["edgekit/__init__.py", "edgekit/testing/__init__.py", "edgekit/testing/fake_runtime.py"]
    assert "edgekit/runtimes/worker.py" in kit.worker_files()
    assert kit.module_files("onnxruntime") == {}
    assert kit.digest(files) != kit.digest({**files, "edgekit/testing/__init__.py": b"#"})
    with pytest.raises(UsageError, match=r"no module no_such_package\.module"):
        kit.module_files("no_such_package.module:Class")


@pytest.mark.parametrize("name", CPUS)
def test_an_emulated_cpu_shows_itself_as_a_board_does(name: str) -> None:
    facts = cpu_facts(CPUS[name].cpuinfo())
    assert facts["cpu"].lower() == name
    assert ("asimddp" in facts["cpu_flags"]) == (name in ("cortex-a76", "neoverse-n1"))
    assert ("neon" in facts["cpu_flags"]) == (name in ("cortex-a7", "cortex-a15"))


def test_the_64_bit_cpus_of_caches_made_before_are_still_valid() -> None:
    lines = (
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
        "CPU implementer\t: 0x41",
        "CPU architecture: 8",
    )
    assert CPUS["cortex-a72"].cpuinfo().startswith("\n".join(("processor\t: 0", *lines, "CPU variant\t: 0x0\n")))
    assert "CPU architecture: 7\n" in CPUS["cortex-a7"].cpuinfo()

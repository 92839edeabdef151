"""A Python for a device that has none: ``edgekit target setup adb`` (or ``ssh:HOST``) sends it, with NumPy and the runtimes.

It is Debian's, with the wheels of the emulated targets (:mod:`edgekit.runtimes.targets.portable_archive`). Programs linked with
glibc run on any Linux kernel, Android's too, when they are started through the loader that came with them; so it needs
nothing of the device but a shell with tar and gzip, and a folder whose files may be executed. There it makes

    python3                 a script that starts it; it is there when everything is, and was tried
    python-DIGEST           its files; named by their content, so they are sent once
    python-DIGEST.parts     what was sent of them so far
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.cache import alone
from edgekit.errors import TargetError
from edgekit.runtimes.targets import debian
from edgekit.runtimes.targets.connection import FOLDER, Connection, Done
from edgekit.runtimes.targets.emulated_cpus import ARM64, ARMV7, Architecture
from edgekit.runtimes.targets.emulated_root import TRY, modules_of, no_wheels
from edgekit.runtimes.targets.portable_archive import LAST, Archive, archive

LAUNCHER = "python3"
"""Its name in the device's folder."""
_MB = 1_000_000
_UNPACK_S, _TRY_S = 1800.0, 300.0
_MACHINES = {"aarch64": ARM64, "arm64": ARM64, "armv7l": ARMV7, "armv8l": ARMV7}
# Android's name of 64-bit Arm (developer.android.com/ndk/guides/abis).
_ABI_64 = "arm64-v8a"
_ASK = """
echo "machine $(uname -m)"
echo "abis $(getprop ro.product.cpu.abilist 2>/dev/null)"
command -v tar >/dev/null || echo "lacks tar"
command -v gzip >/dev/null || command -v gunzip >/dev/null || command -v zcat >/dev/null || echo "lacks gzip"
test -x /system/bin/sh && echo "shell /system/bin/sh" || echo "shell /bin/sh"
echo "room $(df -P -k "$1" 2>/dev/null | tail -n 1)"
"""
# The last cat ends when what feeds it has ended, so the mark is there by then if all could be read.
_UNPACK = f"""
to="$1"; shift
rm -rf "$to" && mkdir "$to" || exit 1
for inflate in "gzip -dc" "gunzip -c" "zcat"; do command -v ${{inflate%% *}} >/dev/null && break; done
(cat "$@" | $inflate && : >"$to/read") | (tar -xf - -C "$to"; code=$?; cat >/dev/null; exit $code) || exit 1
test -f "$to/read" || exit 1
test -f "$to/{LAST}" || {{ echo "the archive ends too early" >&2; exit 1; }}
rm "$to/read" && mkdir "$to/tmp"
"""


@dataclass(frozen=True)
class Device:
    """What a device's shell told.

    Attributes:
        machine: As ``uname -m`` says.
        abis: Of Android's applications; empty elsewhere.
        lacks: Programs that are needed and missing.
        shell: Its path.
        room_bytes: Free where the Python is to lie; None if it does not tell.
    """

    machine: str
    abis: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    shell: str = "/bin/sh"
    room_bytes: int | None = None


def asked(connection: Connection, base: str) -> Device:
    """Asks a device.

    Args:
        connection: To it.
        base: The folder there.
    """
    done = connection.run(["sh", "-c", _ASK, "sh", base])
    told = [line.partition(" ") for line in done.stdout.splitlines()]
    values = {key: value.strip() for key, _, value in told}
    room = values.get("room", "").split()
    return Device(
        values.get("machine", ""),
        tuple(abi for abi in values.get("abis", "").split(",") if abi),
        tuple(value.strip() for key, _, value in told if key == "lacks"),
        values.get("shell", "/bin/sh"),
        int(room[3]) * 1024 if len(room) > 3 and room[3].isdigit() else None,
    )


def architecture_of(device: Device) -> Architecture | None:
    """Which Python fits a device; None if there is none for it.

    A 64-bit kernel may serve a system of 32 bits, whose applications use the 32-bit kernels of the runtimes: what Android
    says of its applications counts.
    """
    found = _MACHINES.get(device.machine)
    return ARMV7 if found is ARM64 and device.abis and _ABI_64 not in device.abis else found


def send(connection: Connection, base: str, install: str, progress: debian.Progress) -> dict[str, Any]:
    """Makes a Python be on a device, and tries it there.

    What is there is not sent again; cut off, the next call goes on. If it fails nothing stays of it on the device.

    Args:
        connection: To the device.
        base: The folder there.
        install: What to type on a device that has to bring its own Python.
        progress: Told how far it has come.

    Returns:
        ``folder``, ``size_bytes`` and ``versions`` of what is there now, and ``sent_bytes``.

    Raises:
        TargetError: If there is none for the device, no room, or it does not run there.
    """
    device = asked(connection, base)
    architecture = architecture_of(device)
    if architecture is None:
        raise TargetError(
            f"{connection.name} is {device.machine or 'no machine that is known'}, and edgekit brings a Python for "
            f"{ARM64.name} and {ARMV7.name} only",
            f"Install one there, 3.10 or newer (apt-get install python3-venv), then {install}",
        )
    if device.lacks:
        raise TargetError(
            f"the shell of {connection.name} has no {' and no '.join(device.lacks)}, and nothing can be unpacked there",
            f"Install them there (busybox has both). Or bring a Python 3.10 or newer: {install}",
        )
    packed = archive(architecture, progress)
    place = hashlib.sha256(f"{connection.name} {base}".encode()).hexdigest()[:12]
    with alone(f"portable-{place}"):
        return _Sending(connection, base, device, packed, architecture).run(progress)


class _Sending:
    """One archive on its way to one device."""

    def __init__(
        self, connection: Connection, base: str, device: Device, packed: Archive, architecture: Architecture
    ) -> None:
        self._connection, self._device, self._packed, self._architecture = connection, device, packed, architecture
        self._base = base
        self._folder = f"{base}/python-{packed.digest}"
        self._parts, self._partial = f"{self._folder}.parts", f"{self._folder}.part"
        self._launcher = f"{base}/{LAUNCHER}"

    def run(self, progress: debian.Progress) -> dict[str, Any]:
        there = self._connection.run(["test", "-f", f"{self._folder}/{LAST}"]).code == 0
        sent = 0
        try:
            if not there:
                sent = self._send(progress)
                self._unpack(progress)
            self._write_launcher()
            versions = self._tried(progress)
        except TargetError:
            # What was there before is not touched.
            with contextlib.suppress(TargetError):
                self._remove(self._parts, self._partial, f"{self._launcher}.new", *([] if there else [self._folder]))
            raise
        self._done(["mv", "-f", f"{self._launcher}.new", self._launcher], "the script that starts it")
        self._remove(*self._others())
        return {
            "folder": self._folder, "size_bytes": self._packed.unpacked_bytes, "versions": versions, "sent_bytes": sent,
        }  # fmt: skip

    def _others(self) -> list[str]:
        """Versions other than this one, and what is left of them."""
        listed = self._connection.run(["ls", self._base]).stdout.split()
        paths = [f"{self._base}/{name}" for name in listed if name.startswith("python-")]
        return [path for path in paths if path not in (self._folder, self._parts)]

    def _send(self, progress: debian.Progress) -> int:
        # What another version left half-way would only take room.
        self._remove(self._partial, *(path for path in self._others() if path.endswith((".part", ".parts"))))
        self._done(["mkdir", "-p", self._parts], self._parts)
        have = set(self._connection.run(["ls", self._parts]).stdout.split())
        missing = [chunk for chunk in self._packed.chunks if chunk.name not in have]
        self._look_for_room(sum(chunk.stat().st_size for chunk in missing) + self._packed.unpacked_bytes)
        title = (
            f"sending a Python for {self._architecture.name} to {self._connection.name} "
            f"({self._packed.packed_bytes / _MB:.0f} MB)"
        )
        total = len(self._packed.chunks)
        for position, chunk in enumerate(missing, total - len(missing)):
            progress(position, total, title)
            self._connection.put(chunk, f"{self._parts}/{chunk.name}")
        progress(total, total, title)
        return sum(chunk.stat().st_size for chunk in missing)

    def _look_for_room(self, needed: int) -> None:
        room = self._device.room_bytes
        if room is not None and room < needed:
            raise self._connection.full(
                f"the Python needs {needed / _MB:.0f} MB in {self._base}, and {room / _MB:.0f} MB are free"
            )

    def _unpack(self, progress: debian.Progress) -> None:
        title = f"unpacking it there ({self._packed.unpacked_bytes / _MB:.0f} MB)"
        progress(0, 1, title)
        chunks = [f"{self._parts}/{chunk.name}" for chunk in self._packed.chunks]
        self._done(["sh", "-c", _UNPACK, "sh", self._partial, *chunks], "the Python", _UNPACK_S)
        self._done(["mv", self._partial, self._folder], self._folder)
        self._remove(self._parts)
        progress(1, 1, title)

    def _write_launcher(self) -> None:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
            path = Path(name) / LAUNCHER
            path.write_text(launcher(self._device.shell, self._base, self._folder, self._packed), encoding="utf-8")
            self._connection.put(path, f"{self._launcher}.new")
        self._done(["chmod", "755", f"{self._launcher}.new"], self._launcher)

    def _tried(self, progress: debian.Progress) -> dict[str, str]:
        """The versions of what can be imported there, and why the rest can't."""
        modules = modules_of(self._architecture)
        title = "trying it there"
        progress(0, len(modules) + 1, title)
        found = self._try(modules)
        # One that does not load, or crashes, must not hide the others.
        if isinstance(found, str):
            found = self._try([])
            if isinstance(found, str):
                self._remove(self._folder)
                raise TargetError(
                    f"the Python that was sent does not run on {self._connection.name}: {found}",
                    f"Does the system execute files below {self._base}? {FOLDER} names another folder. "
                    "The same command sends it anew.",
                )
            for position, module in enumerate(modules, 1):
                progress(position, len(modules) + 1, title)
                told = self._try([module])
                found |= {module.partition(".")[0]: f"does not load: {told}"} if isinstance(told, str) else told
        progress(1, 1, title)
        return found | no_wheels(self._architecture)

    def _try(self, modules: Sequence[str]) -> dict[str, str] | str:
        """What NumPy and other modules tell of themselves, or the last words of the failure."""
        done = self._connection.run(["sh", f"{self._launcher}.new", "-c", TRY, *modules], timeout_s=_TRY_S)
        if done.code == 0:
            versions: dict[str, str] = json.loads(done.stdout)
            return versions
        said = done.stderr.strip().splitlines()
        # A shell tells a signal as 128 and its number.
        killed = done.code - 128 in set(signal.Signals)
        end = f"killed by {signal.Signals(done.code - 128).name}" if killed else f"exit code {done.code}"
        return f"{end}: {said[-1][:300]}" if said else end

    def _remove(self, *paths: str) -> None:
        if paths:
            self._connection.run(["rm", "-rf", *paths])

    def _done(self, words: Sequence[str], what: str, timeout_s: float = 60.0) -> Done:
        done = self._connection.run(words, timeout_s=timeout_s)
        self._connection.copied(done, what)
        return done


def launcher(shell: str, base: str, folder: str, packed: Archive) -> str:
    """The script that starts the Python, for the shell of the device.

    Args:
        shell: Its path.
        base: The folder that the script lies in.
        folder: Where the Python lies.
        packed: Which one.
    """
    return f"""#!{shell}
# Written by edgekit: starts the Python beside it through its own loader.
here={shlex.quote(folder)}
base={shlex.quote(base)}
# These are of the device's own C library, and of its own Python.
unset LD_PRELOAD LD_LIBRARY_PATH PYTHONPATH PYTHONSTARTUP
export PYTHONHOME="$here/usr" PYTHONNOUSERSITE=1 LC_ALL=C.UTF-8 TF_CPP_MIN_LOG_LEVEL=2
for one in "$TMPDIR" /tmp "$here/tmp"; do test -d "$one" && test -w "$one" && break; done
TMPDIR="$one"
test -n "$HOME" && test -w "$HOME" || HOME="$here/tmp"
export TMPDIR HOME
# So that what Python calls its own name is this script again.
exec "$here/{packed.loader}" --inhibit-cache --argv0 "$base/{LAUNCHER}" --library-path "$here/lib" "$here/{packed.python}" "$@"
"""

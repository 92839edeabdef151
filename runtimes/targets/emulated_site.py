"""Where an emulated architecture's files lie in the cache, and the runtimes' wheels among them."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekit.cache import cache_folder
from edgekit.errors import PackagesError, TargetError
from edgekit.files import atomic_folder, write_json
from edgekit.runtimes.targets import debian
from edgekit.runtimes.targets.emulated_cpus import Architecture

_PIP_S = 3600
_NOT_THERE = "No matching distribution found"


def base() -> Path:
    """The cache's folder of what is emulated."""
    return cache_folder() / "emulated"


def folder_of(architecture: Architecture) -> Path:
    """The folder of an architecture's root."""
    return base() / architecture.folder


def python_of(folder: Path) -> Path | None:
    """The Python of a root, if it is there."""
    return next(iter((folder / "root" / "usr" / "bin").glob("python3.[0-9]*[0-9]")), None)


def name_of(wheel: str) -> str:
    """The name of a wheel that may be named with its version."""
    return wheel.partition("==")[0]


def without(architecture: Architecture) -> tuple[str, ...]:
    """The optional wheels that the index did not have when the root was set up."""
    record = folder_of(architecture) / "site" / "edgekit.json"
    return tuple(json.loads(record.read_text(encoding="utf-8")).get("without", ())) if record.is_file() else ()


def _requirement(wheel: str) -> str:
    """A wheel in the version that is installed here, so that host and target compute with the same code."""
    try:
        return wheel if "==" in wheel else f"{wheel}=={importlib.metadata.version(wheel)}"
    except importlib.metadata.PackageNotFoundError:
        return wheel


def _requirements(architecture: Architecture) -> list[str]:
    return [_requirement(wheel) for wheel in architecture.wheels]


def fits(architecture: Architecture) -> bool:
    """Whether the wheels are there, in the versions installed here."""
    record = folder_of(architecture) / "site" / "edgekit.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["wheels"] == _requirements(architecture)


def fill(architecture: Architecture, progress: debian.Progress) -> None:
    """Fetches the wheels.

    Raises:
        PackagesError: If one that is not optional can't be had.
        TargetError: If the package index has it in other versions alone.
    """
    folder = folder_of(architecture)
    python = python_of(folder)
    assert python is not None
    title = f"fetching the runtimes' {architecture.name} wheels"
    optional = [_requirement(wheel) for wheel in architecture.optional]
    wheels = [wheel for wheel in _requirements(architecture) if wheel not in optional]
    missed = []
    progress(0, 1, title)
    with atomic_folder(folder / "site") as partial:
        words = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-input",
            "--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp",
            "--python-version", python.name.removeprefix("python"), "--target", str(partial),
            *(f"--platform={name}_{architecture.name}" for name in architecture.glibc),
        ]  # fmt: skip
        said = _pip([*words, *wheels])
        if others := [line for line in said if "(from versions: " in line and "(from versions: none)" not in line]:
            raise TargetError(
                f"the package index has other versions of a wheel: {others[0][:300]}",
                "Install these versions here too.",
            )
        if said:
            raise PackagesError(
                f"pip could not fetch the {architecture.name} wheels: {said[-1][:300]}",
                "It needs pip in this environment, and a package index that has wheels for "
                f"manylinux {architecture.name}.",
            )
        for wheel in optional:
            said = _pip([*words, wheel])
            # The others came, so the index was there: what it does not have, nobody published.
            if said and not said[-1].startswith(f"ERROR: {_NOT_THERE}"):
                raise PackagesError(f"pip could not fetch {wheel}: {said[-1][:300]}", "The same command goes on.")
            missed += [wheel] if said else []
        write_json(partial / "edgekit.json", {"wheels": _requirements(architecture), "without": missed})
    progress(1, 1, title)


def _pip(words: Sequence[str]) -> list[str]:
    """What pip said of its errors, in lines; nothing if it had none."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise PackagesError(f"pip did not finish in {_PIP_S} s", "Is the network up? The command goes on.") from error
    if not done.returncode:
        return []
    return [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]

"""Checks that every Python file of the three rooms and of edgekit is in the wheel: the package list is explicit."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOMS = {
    "edgekit": "edgekit",
    "compress": "edgekit/compress",
    "export": "edgekit/export",
    "runtimes": "edgekit/runtimes",
}


def main(root: Path, wheel: Path) -> int:
    """Prints what is missing; returns the exit code."""
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{place}/{file.relative_to(root / room).as_posix()}"
        for room, place in ROOMS.items()
        for file in (root / room).rglob("*")
        if file.suffix in (".py", ".c", ".safetensors", ".typed") and "__pycache__" not in file.parts
    }
    missing = sorted(wanted - held)
    for name in missing:
        print(f"missing in the wheel: {name}; is its folder in `packages` of pyproject.toml?")
    print(f"{len(wanted) - len(missing)} of {len(wanted)} files are in {wheel.name}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

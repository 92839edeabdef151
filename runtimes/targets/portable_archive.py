"""The Python that is sent to devices which have none: out of an emulated architecture's root, what a worker needs and no more.

    lib                             the C library with its loader, and every other library that something here is linked with
    usr/bin/python3.N               Debian's
    usr/lib/python3.N               its standard library, without what is for development and desktops
    usr/lib/python3/dist-packages   NumPy and the runtimes

There are no links in it, for not every device's file system or shell has them. It is packed once for each content.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.cache import alone, cache_folder
from edgekit.errors import TargetError
from edgekit.files import atomic_folder, size_on_disk
from edgekit.runtimes.targets import debian, elf, emulated_root
from edgekit.runtimes.targets.emulated_cpus import Architecture
from edgekit.runtimes.targets.emulated_site import folder_of, python_of

LAST = "edgekit-whole"
"""The archive's last file: where it is, all the others are."""
_PACKAGES = "usr/lib/python3/dist-packages"
_CHUNK_BYTES = 4 << 20
_LEVEL = 6
_NOT_PACKED = re.compile(
    # Debian links what is below python3.N/dist-packages into python3/dist-packages, which is packed.
    r"""^usr/lib/python3\.\d+/dist-packages/
    | /(__pycache__ | tests? | idlelib | lib2to3 | turtledemo | tkinter | pydoc_data | ensurepip
         | config-3[^/]* | pkg_resources | f2py | numpy/distutils | numpy/typing
         | onnxruntime/(tools|transformers|quantization|datasets|backend) | ai_edge_litert/(aot|tools) | ncnn/model_zoo )/
    | \.(a|h|c|pyi|pxd|pyx|la|exe)$
    | /(ThirdPartyNotices\.txt | Privacy\.md | turtle\.py | EXTERNALLY-MANAGED)$
    # What has no use without a terminal, a network or a GPU, and would bring more libraries.
    | /lib-dynload/(_ssl|_hashlib|_sqlite3|_dbm|_gdbm|_curses|_curses_panel|_tkinter|readline|nis|ossaudiodev|_crypt|_uuid
                   |_test[a-z]*|_ctypes_test|_xx[a-z]*|xx[a-z_0-9]*)\.
    | /libLiteRtWebGpuAccelerator\.so$
    # The C++ library, which the Python module of ONNX Runtime does not use: it holds a copy.
    | /libonnxruntime\.so[.\d]*$""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Archive:
    """A packed Python.

    Attributes:
        digest: A name for its content.
        chunks: Its parts, to be put one behind the other: tar, compressed with gzip. A transfer that was cut off goes on
            with the next.
        unpacked_bytes: What its files take.
        python: The interpreter in it.
        loader: What starts it.
    """

    digest: str
    chunks: tuple[Path, ...]
    unpacked_bytes: int
    python: str
    loader: str

    @property
    def packed_bytes(self) -> int:
        """What is sent."""
        return sum(size_on_disk(chunk) for chunk in self.chunks)


def archive(architecture: Architecture, progress: debian.Progress) -> Archive:
    """Packs an architecture's Python, unless it is packed already; what it is made from is fetched where it is missing.

    Args:
        architecture: Of the device.
        progress: Told how far it has come.

    Raises:
        TargetError: If something can't be fetched, or the root is not as it should be.
    """
    emulated_root.fetch(progress, architecture)
    files = contents(folder_of(architecture))
    python = next(name for name in files if re.fullmatch(r"usr/bin/python3\.\d+", name))
    loader = _loader(files[python])
    folder = cache_folder() / "portable" / f"{architecture.name}-{_digest(files)}"
    with alone("portable"):
        if not folder.is_dir():
            _pack(files, folder, architecture, progress)
    return Archive(
        folder.name.rpartition("-")[2],
        tuple(sorted(folder.iterdir())),
        # Most file systems give whole blocks.
        sum((path.stat().st_size + 4095) // 4096 * 4096 for path in files.values()),
        python,
        f"lib/{loader}",
    )


def contents(folder: Path) -> dict[str, Path]:
    """The files of the Python that lies in an architecture's folder: names in the archive, and where each is now.

    Raises:
        TargetError: If there is none.
    """
    python = python_of(folder)
    if python is None:
        raise TargetError(f"there is no Python in {folder}", "Remove that folder, and set up again.")
    library = folder / "root" / "usr" / "lib"
    found = {
        f"usr/bin/{python.name}": python,
        **_below(library / python.name, f"usr/lib/{python.name}"),
        **_below(library / "python3" / "dist-packages", _PACKAGES),
        **_below(folder / "site", _PACKAGES),
    }
    return {**found, **_libraries(folder / "root", found)}


def _below(folder: Path, name: str) -> dict[str, Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {f"{name}/{path.relative_to(folder)}": path for path in files}
    return {name: path for name, path in named.items() if not _NOT_PACKED.search(name)}


def _libraries(root: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    """The system's libraries that the files are linked with, these libraries' own, and the loader."""
    folders = [folder for top in ("lib", "usr/lib") for folder in sorted((root / top).glob("*-linux-gnu*"))]
    found: dict[str, Path] = {}
    frontier = [path for name, path in files.items() if ".so" in name or name.startswith("usr/bin/")]
    while frontier:
        read = elf.read(frontier.pop())
        if read is None:
            continue
        for name in (*read.needed, *([os.path.basename(read.loader)] if read.loader else [])):
            # What is in no such folder a wheel has brought along, and names its place itself.
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is not None and f"lib/{name}" not in found:
                found[f"lib/{name}"] = path
                frontier.append(path)
    return found


def _loader(python: Path) -> str:
    read = elf.read(python)
    if read is None or not read.loader:
        raise TargetError(f"{python} is no program", "Remove the folder that it is in, and set up again.")
    return os.path.basename(read.loader)


def _digest(files: Mapping[str, Path]) -> str:
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        total.update(f"{name} {len(content)} {os.access(path, os.X_OK)}\n".encode() + content)
    return total.hexdigest()[:16]


def _pack(files: Mapping[str, Path], folder: Path, architecture: Architecture, progress: debian.Progress) -> None:
    for old in folder.parent.glob(f"{architecture.name}-*"):
        shutil.rmtree(old, ignore_errors=True)
    title = f"packing a Python for {architecture.name}"
    with atomic_folder(folder) as partial:
        whole = partial / "whole"
        # No extended headers: not every tar reads them.
        with (
            gzip.open(whole, "wb", compresslevel=_LEVEL) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as packed,
        ):
            for position, (name, path) in enumerate(sorted(files.items())):
                if position % 100 == 0:
                    progress(position, len(files), title)
                _add(packed, name, path.read_bytes(), os.access(path, os.X_OK))
            _add(packed, LAST, b"", False)
        with whole.open("rb") as parts:
            for number in itertools.count():
                if not (part := parts.read(_CHUNK_BYTES)):
                    break
                (partial / f"{number:04d}").write_bytes(part)
        whole.unlink()
    progress(len(files), len(files), title)


def _add(packed: tarfile.TarFile, name: str, content: bytes, executable: bool) -> None:
    entry = tarfile.TarInfo(name)
    # The time of a file says nothing, but compiled modules are checked by it, so it has to be the same everywhere.
    entry.size, entry.mtime, entry.mode = len(content), 1_000_000_000, 0o755 if executable else 0o644
    packed.addfile(entry, io.BytesIO(content))

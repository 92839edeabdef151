"""The files that a target needs: the worker, the runtimes, and whatever runtime a user brings. Python and NumPy run them."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.files import disk_errors

# There `edgekit` is these files alone, and a second folder may add to it.
_PACKAGE = b'__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'
_MODULES = (
    "worker", "process", "energy", "runtime", "settings", "facts", "profile", "peak", "xnnpack_operators", "onnx_graph",
    "onnx_provider",
    *(f"{prefix}{name}" for name in ("onnxruntime", "tflite", "ncnn", "openvino", "torch") for prefix in ("", "profile_")),
)  # fmt: skip

Files = Mapping[str, bytes]
"""Contents by their names below a folder of Python's search path."""


def worker_files() -> Files:
    """The worker and its runtimes, as a package ``edgekit`` that holds nothing else."""
    here = Path(__file__).resolve().parent.parent
    return {
        "edgekit/__init__.py": _PACKAGE,
        "edgekit/runtimes/__init__.py": b"",
        **{f"edgekit/runtimes/{name}.py": (here / f"{name}.py").read_bytes() for name in _MODULES},
    }


def module_files(runtime: str) -> Files:
    """The module of a runtime that is given as ``package.module:Class``, with its packages; nothing for a name.

    Raises:
        UsageError: If there is no such module here.
    """
    if ":" not in runtime or runtime.startswith("."):
        return {}
    name = runtime.partition(":")[0]
    try:
        found = importlib.util.find_spec(name)
    except ImportError as error:
        raise UsageError(f"there is no module {name}: {error}", "Give package.module:Class.") from error
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise UsageError(f"there is no Python file of a module {name}", "Give package.module:Class.")
    parts = name.split(".")
    files = {"/".join(parts) + ".py": Path(found.origin).read_bytes()}
    for depth in range(1, len(parts)):
        initial = Path(found.origin).parents[len(parts) - 1 - depth] / "__init__.py"
        content = initial.read_bytes() if initial.is_file() else b""
        files["/".join(parts[:depth]) + "/__init__.py"] = _PACKAGE if parts[0] == "edgekit" and depth == 1 else content
    return files


def digest(files: Files) -> str:
    """A name for these contents."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()[:16]


def write(files: Files, folder: Path) -> None:
    """Writes the files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def kept(files: Files, parent: Path) -> Path:
    """A folder below ``parent`` that holds these files and is named after them; written once."""
    folder = parent / digest(files)
    if not folder.is_dir():
        with disk_errors(folder):
            parent.mkdir(parents=True, exist_ok=True)
            # Workers that start at once may all write it: each its own, and the first one stays.
            partial = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
            try:
                write(files, partial)
                partial.rename(folder)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                if not folder.is_dir():
                    raise
    return folder

"""Writing files and folders so that a kill at any moment leaves the old one or the new one, never a half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_on_disk(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the name ``path`` when the block ends well.

    An older folder of that name is replaced; if the block raises, it stays as it was and the new one is removed.
    """
    path = Path(os.path.abspath(path))
    partial = path.with_name(f".{path.name}.writing")
    old = path.with_name(f".{path.name}.replaced")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose file takes the name ``path`` when the block ends well."""
    path = Path(os.path.abspath(path))
    partial = path.with_name(f".{path.name}.writing")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a missing right, met while ``path`` is written, into a message of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EdgekitError(
                f"the disk is full: {path} could not be written", "Free some space; nothing was left half-written."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise EdgekitError(f"{path} can't be written: {error.strerror}", "Choose another folder.") from error
        place = Path(os.path.abspath(path))
        wrong = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)
        # Only for the place itself and what leads to it: another missing file is another matter.
        if (
            wrong
            and error.filename
            and (Path(error.filename).parent == place.parent or Path(error.filename) in place.parents)
        ):
            raise EdgekitError(f"{path} can't be written: {error.strerror}", "Choose another folder.") from error
        raise

"""What an ELF file asks its loader for: the libraries that it needs, and the loader itself (System V ABI, chapters 4 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC, _WIDE, _LITTLE = b"\x7fELF", 2, 1
_LOAD, _DYNAMIC, _INTERP = 1, 2, 3  # program headers
_END, _NEEDED, _STRINGS = 0, 1, 5  # entries of the dynamic section


@dataclass(frozen=True)
class Elf:
    """A program or shared library.

    Attributes:
        loader: Path of the loader that a program names; empty for a library.
        needed: Names of the libraries that it is linked with.
    """

    loader: str
    needed: tuple[str, ...]


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read(path: Path) -> Elf | None:
    """Reads a file's headers; None if it is no little-endian ELF file.

    Example:
        >>> import sys
        >>> read(Path(__file__)) is None
        True
    """
    with path.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            return None
    data = path.read_bytes()
    if data[5] != _LITTLE:
        return None
    wide = data[4] == _WIDE
    segments = list(_segments(data, wide))
    loader = next((data[one.offset : one.offset + one.size] for one in segments if one.kind == _INTERP), b"")
    entries = [entry for one in segments if one.kind == _DYNAMIC for entry in _entries(data, one, wide)]
    strings = next((_place(segments, value) for tag, value in entries if tag == _STRINGS), 0)
    needed = tuple(_string(data, strings + value) for tag, value in entries if tag == _NEEDED)
    return Elf(loader.rstrip(b"\0").decode(), needed)


def _segments(data: bytes, wide: bool) -> Iterator[_Segment]:
    start = struct.unpack_from("<Q" if wide else "<I", data, 0x20 if wide else 0x1C)[0]
    size, number = struct.unpack_from("<HH", data, 0x36 if wide else 0x2A)
    for position in range(start, start + size * number, size):
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, position)
        else:
            kind, offset, address, _, length = struct.unpack_from("<IIIII", data, position)
        yield _Segment(kind, offset, address, length)


def _entries(data: bytes, segment: _Segment, wide: bool) -> Iterator[tuple[int, int]]:
    table = data[segment.offset : segment.offset + segment.size]
    for tag, value in struct.iter_unpack("<qQ" if wide else "<iI", table):
        if tag == _END:
            return
        yield tag, value


def _place(segments: list[_Segment], address: int) -> int:
    """Where in the file an address of the loaded image lies."""
    for one in segments:
        if one.kind == _LOAD and one.address <= address < one.address + one.size:
            return address - one.address + one.offset
    return address


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()

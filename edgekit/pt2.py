"""Files of programs: ``.pt2`` archives that hold no pickle, and reading them without running what is in them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import typing
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgekit.arithmetic import no_collections
from edgekit.errors import SourceError
from edgekit.files import atomic_file
from edgekit.program import quiet

# An expression in a program's JSON is given to sympy.sympify, which evaluates it: admit arithmetic only.
_SAFE_EXPRESSION = re.compile(r"^(?:[\w\s+\-*/%(),.<>=&|~]|'\w+')*$")
_SAFE_CALLS = re.compile(
    r"^(Symbol|Add|Mul|Pow|Integer|Rational|Min|Max|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|Eq|Ne|Le|Lt|Ge|Gt|Abs)$"
)


def save_pt2(program: ExportedProgram, path: Path) -> None:
    """Writes a program as a compressed ``.pt2`` that holds no pickle and whose bytes depend on its content alone."""
    raw = io.BytesIO()
    stripped = copy.copy(program)
    stripped._example_inputs = None
    with quiet(), no_collections():
        torch.export.save(stripped, raw)
    with atomic_file(path) as partial, zipfile.ZipFile(raw) as source, zipfile.ZipFile(partial, "w") as target:
        for entry in source.infolist():
            if ".data/serialization_id" in entry.filename:
                continue
            content = b"" if "/sample_inputs/" in entry.filename else source.read(entry)
            name = "program/" + entry.filename.split("/", 1)[1]
            _write_deflated(target, name, content)


_PROBE_BYTES = 2**20


def _write_deflated(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Writes an entry in the shortest of three forms of deflate, all of which every reader understands.

    Codes and few-bit weights hold no repetitions: Huffman coding alone comes within 1 % of their entropy, and searching
    for matches costs 8 to 15 % there. Text and float weights are better off with matches, masks with few ones with a long
    search for them.
    """
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    choices = [(6, zlib.Z_DEFAULT_STRATEGY), (9, zlib.Z_DEFAULT_STRATEGY), (9, zlib.Z_HUFFMAN_ONLY)]

    def compressor(level: int, strategy: int) -> Any:
        return zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)

    sizes = []
    # Judged by a piece of the middle where there is much.
    start = max(0, (len(content) - _PROBE_BYTES) // 2)
    probe = content[start : start + _PROBE_BYTES]
    for choice in choices:
        trial = compressor(*choice)
        sizes.append(len(trial.compress(probe)) + len(trial.flush()))
    with archive.open(info, "w") as entry:
        # zipfile has no setting for the strategy.
        entry._compressor = compressor(*choices[sizes.index(min(sizes))])  # type: ignore[attr-defined]
        entry.write(content)


def load_pt2(path: Path) -> ExportedProgram:
    """Loads a ``.pt2`` without ever unpickling.

    ``torch.export.load`` unpickles sample inputs and marked tensors with ``weights_only=False`` (torch 2.13), so a
    stranger's file could run code. The archive is inspected first: sample inputs are left out, anything else that
    would be unpickled or evaluated is refused.

    Raises:
        SourceError: If the file is missing, no ``.pt2``, truncated, or would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(
            f"{path} does not exist or is no file", "Give the path of a file written by torch.export.save."
        )
    safe = io.BytesIO()
    try:
        with no_collections(), zipfile.ZipFile(path) as source, zipfile.ZipFile(safe, "w") as target:
            for entry in source.infolist():
                # Checked against its checksum.
                content = source.read(entry)
                _refuse_code(path, entry.filename, content)
                target.writestr(entry.filename, b"" if "/sample_inputs/" in entry.filename else content)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise SourceError(
            f"{path} is damaged or no .pt2 file: {error}", "It may be a truncated download: fetch or write it again."
        ) from error
    safe.seek(0)
    try:
        with quiet(), no_collections(), _type_hints_once():
            return torch.export.load(safe)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{path} is no program that this torch ({torch.__version__}) can load: {first}",
            "Write it with torch.export.save of the same torch version, or load the model from its source instead.",
        ) from error


@contextlib.contextmanager
def _type_hints_once() -> Iterator[None]:
    """Remembers the type hints of classes: torch's loader (2.13) works them out anew for every node."""
    asked, known = typing.get_type_hints, dict[Any, Any]()

    def remembered(of: Any, *others: Any, **named: Any) -> Any:
        key = (of, *map(id, others), *((name, id(value)) for name, value in named.items()))
        if key not in known:
            known[key] = asked(of, *others, **named)
        return known[key]

    typing.get_type_hints = remembered  # type: ignore[assignment]
    try:
        yield
    finally:
        typing.get_type_hints = asked


def _refuse_code(path: Path, name: str, content: bytes) -> None:
    """Raises SourceError for an archive member that loading would unpickle or evaluate."""
    reason = ""
    inner = name.split("/", 1)[-1]
    if inner.endswith((".pt", ".pkl", ".pickle")) and "sample_inputs/" not in inner:
        reason = f"its member {name} is a pickle"
    elif "/custom_obj_" in name or "/opaque_obj_" in name:
        reason = f"its member {name} is a pickled object"
    elif inner.startswith(("data/aotinductor", "data/executorch")):
        reason = f"its member {name} is compiled code"
    elif inner.endswith(".json"):
        try:
            reason = _unsafe_json(json.loads(content))
        except ValueError:
            reason = f"its member {name} is no valid JSON"
    if reason:
        raise SourceError(
            f"{path} is refused: {reason}, and loading it could run code",
            "If you trust where it came from, load it with torch.export.load in a script of your own, and save it again "
            "with plain tensors only; or give the model's factory with --weights.",
        )


def _unsafe_json(value: Any) -> str:
    if isinstance(value, dict):
        if value.get("use_pickle"):
            return f"its tensor {value.get('path_name', '?')} is stored as a pickle"
        expression = value.get("expr_str")
        if isinstance(expression, str) and not _safe_expression(expression):
            return f"its shape expression {expression[:60]!r} is more than arithmetic"
        return next((reason for item in value.values() if (reason := _unsafe_json(item))), "")
    if isinstance(value, list):
        return next((reason for item in value if (reason := _unsafe_json(item))), "")
    return ""


def _safe_expression(expression: str) -> bool:
    calls = re.findall(r"([A-Za-z_]\w*)\s*\(", expression)
    return (
        bool(_SAFE_EXPRESSION.match(expression))
        and "__" not in expression
        and not re.search(r"[A-Za-z_]\w*\s*\.", expression)
        and all(_SAFE_CALLS.match(call) for call in calls)
    )

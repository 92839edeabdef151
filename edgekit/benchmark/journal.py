"""What is kept of a bench while it runs, so that the same command goes on where it was cut off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.files import atomic_file, disk_errors, write_json
from edgekit.runtimes.measure import Round

_IDENTITY, _ROUNDS = "bench.json", "rounds.jsonl"


class FolderJournal:
    """A folder beside the result: what is measured, a line for each round, and the outputs of the data set in chunks.

    Args:
        folder: Where; made if it is not there.
        identity: What is measured, how and where, as JSON values: only the same goes on.

    Raises:
        UsageError: If the folder holds another measurement.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        self._known: dict[tuple[int, int], Round] = {}
        wanted = json.loads(json.dumps(identity))
        if (folder / _IDENTITY).is_file():
            found = self._identity()
            if found != wanted:
                changed = ", ".join(sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key)))
                raise UsageError(
                    f"{folder} holds a measurement that was cut off, and it is another one: {changed} differ",
                    f"Repeat its command to end it, remove {folder}, or write to another place with --output.",
                )
            self._read()
        else:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _IDENTITY, wanted)

    def _identity(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / _IDENTITY).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{self._folder / _IDENTITY} is damaged: {error}", f"Remove {self._folder}.") from error
        return found

    def _read(self) -> None:
        path = self._folder / _ROUNDS
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            # A kill may have cut the last line: what it held is measured again.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                known = entry["round"]
                lists: dict[str, Any] = {name: tuple(known.pop(name)) for name in ("samples_ms", "instructions")}
                self._known[entry["cell"], entry["number"]] = Round(**known, **lists)

    @property
    def rounds(self) -> int:
        """How many rounds are known."""
        return len(self._known)

    def round(self, cell: int, number: int) -> Round | None:
        """What was kept of a round of a cell."""
        return self._known.get((cell, number))

    def keep(self, cell: int, number: int, found: Round) -> None:
        """Keeps a round."""
        path = self._folder / _ROUNDS
        with disk_errors(path), path.open("a", encoding="utf-8") as stream:
            # Begins with a line feed, for a line that a kill cut would spoil the next one too.
            stream.write("\n" + json.dumps({"cell": cell, "number": number, "round": asdict(found)}))

    def chunks(self, name: str) -> FolderChunks:
        """The outputs over the data set of what has this name."""
        return FolderChunks(self._folder / f"outputs-{hashlib.sha256(name.encode()).hexdigest()[:16]}")

    def remove(self) -> None:
        """All is done: nothing is to go on."""
        shutil.rmtree(self._folder, ignore_errors=True)


class FolderChunks:
    """Outputs in chunks, a file each.

    Args:
        folder: Where; made with the first chunk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, number: int) -> np.ndarray | None:
        """A chunk that was kept."""
        path = self._folder / f"{number:06d}.npy"
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def put(self, number: int, outputs: np.ndarray) -> None:
        """Keeps a chunk."""
        path = self._folder / f"{number:06d}.npy"
        with atomic_file(path) as partial, partial.open("wb") as stream:
            np.save(stream, outputs)

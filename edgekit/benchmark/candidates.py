"""From what a user names to what is measured: the files, the runtimes that run them, and an input for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ExecutionError, UsageError
from edgekit.runtimes.choice import Choice, choose
from edgekit.runtimes.measure import Cell, Plan, failed_round, options_of
from edgekit.runtimes.runtime import SUFFIXES, runtime_for, runtime_of_file
from edgekit.runtimes.targets.target import Target

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.data.dataset import Dataset

OTHER_BATCH = "batch"
"""The failure of a file that takes another number of inputs at a time."""


@dataclass
class Candidate:
    """A cell on its way to a row.

    Attributes:
        cell: What is measured.
        item: Which of the named things it belongs to.
        home: The bundle it belongs to.
        opened: What a worker told when it opened the file.
        error: Why it can't be measured.
        failure: What kind of end that was.
        x: The input that is timed.
        input: What that is.
    """

    cell: Cell
    item: int
    home: Path | None
    opened: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    failure: str = ""
    x: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    input: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """What edgekit wrote into the file; empty for a stranger's."""
        found: dict[str, Any] = self.opened.get("metadata", {})
        return found


def paths_of(items: str | Path | Bundle | Iterable[str | Path | Bundle]) -> list[Path]:
    """Where the named things lie.

    Raises:
        UsageError: If one is not there.
    """
    from edgekit.bundle import Bundle

    return [_path_of(item) for item in ([items] if isinstance(items, (str, Path, Bundle)) else items)]


def _path_of(item: str | Path | Bundle) -> Path:
    from edgekit.bundle import Bundle

    if isinstance(item, Bundle):
        if item.path is None:
            raise UsageError("a bundle must lie on disk to be measured", "Save it first: bundle.save(DIR).")
        return item.path
    path = Path(item)
    if not path.exists():
        raise UsageError(f"{path} does not exist", "Give exported files or bundle folders.")
    return path


def list_candidates(
    paths: Sequence[Path],
    runtimes: Sequence[str],
    threads: Sequence[int],
    target: Target,
    batches: Sequence[int] = (1,),
) -> list[Candidate]:
    """Every file of what was named, in each fitting runtime, with each number of threads and each batch.

    Args:
        paths: Exported files and bundle folders.
        runtimes: As :func:`edgekit.runtimes.choice.choose` reads them; what the files need if empty.
        threads: Each is a cell of its own.
        target: Where they will run.
        batches: Inputs at a time; each is a cell of its own.

    Raises:
        UsageError: If a path can't be run, or nothing is left to measure.
    """
    from edgekit.export.run import exported_files

    chosen = [choose(text) for text in runtimes]
    found = []
    for item, path in enumerate(paths):
        if path.is_dir():
            if not (path / "bundle.json").is_file():
                raise UsageError(f"{path} is a folder without bundle.json", "Give bundle folders or exported files.")
            files = [path, *exported_files(path)]
        else:
            files = [path]
        for file in files:
            name = runtime_of_file(str(file))
            if name is None:
                raise UsageError(f"no runtime runs {file}", f"Files end in {', '.join(SUFFIXES)}.")
            # A bundle's own program runs in torch, with all of edgekit: boards and phones run its exports.
            usual = [Choice(name=name)] if name != "torch" or target.has_edgekit else []
            fitting = [choice for choice in chosen if runtime_for(choice.name).runs(str(file))] if runtimes else usual
            home = path if path.is_dir() else _home_of(path)
            # A file that the user named is shown as named; one of a bundle with the bundle's name before it.
            label = path.name if file == path else f"{path.name}/{file.name}"
            found += [
                Candidate(
                    Cell(
                        label=label,
                        path=file,
                        runtime=choice.name,
                        threads=count,
                        extra=dict(choice.extra),
                        batch=batch,
                    ),
                    item,
                    home,
                )
                for choice in fitting
                for count in threads
                for batch in batches
            ]
    if not found:
        raise UsageError(
            f"nothing of what was given runs in {', '.join(runtimes)}" if runtimes else "there is nothing to measure",
            "Write the files first: edgekit export BUNDLE --to onnx --to tflite --to ncnn",
        )
    return found


def _home_of(file: Path) -> Path | None:
    folder = file.resolve().parent.parent
    return folder if (folder / "bundle.json").is_file() else None


def probe(candidate: Candidate, target: Target, dataset: Dataset | None, plan: Plan) -> None:
    """Opens the file once, to learn what it takes and to find a real input for it."""
    cell, batch = candidate.cell, candidate.cell.batch
    try:
        with target.worker() as worker:
            candidate.opened = worker.open(cell.path, cell.runtime, options_of(cell, plan), plan.timeout_s)
    except ExecutionError as error:
        failed = failed_round(error)
        candidate.error, candidate.failure = failed.error, failed.failure
        return
    choose_input(candidate, dataset, batch)


def choose_input(candidate: Candidate, dataset: Dataset | None, batch: int) -> None:
    """Finds a real input for a file that was opened, or makes one of random numbers; an error if it takes none such."""
    shape = candidate.opened["inputs"][0]["shape"]
    fixed = shape[0] if shape and shape[0] > 0 else None
    if fixed not in (None, batch):
        candidate.error, candidate.failure = f"the file is made for a batch of {fixed}, not {batch}", OTHER_BATCH
        return
    real = _real_input(candidate, dataset, batch)
    if real is not None:
        candidate.x, candidate.input = real, "a real sample"
        return
    # Without metadata nothing is transposed, so the input has the file's own shape.
    inner = candidate.metadata.get("input_shape") or [size if size > 0 else 1 for size in shape[1:]]
    candidate.x = np.random.default_rng(0).standard_normal((batch, *inner), dtype=np.float32)
    candidate.input = "random numbers"


def _real_input(candidate: Candidate, dataset: Dataset | None, batch: int) -> np.ndarray | None:
    if candidate.home is not None and (candidate.home / "samples.npz").is_file():
        with np.load(candidate.home / "samples.npz", allow_pickle=False) as arrays:
            return np.resize(arrays["inputs"], (batch, *arrays["inputs"].shape[1:]))
    if dataset is not None and candidate.metadata.get("preprocessing"):
        from edgekit.data.preprocessing import Preprocessing

        preprocessing = Preprocessing.from_dict(candidate.metadata["preprocessing"])
        x = next(iter(dataset.test.batches(preprocessing, batch)))[0]
        return np.resize(x, (batch, *x.shape[1:]))
    return None


def macs_of(candidate: Candidate) -> int | None:
    """MACs for one input: of a bundle's program, or as a file tells them; None when unknown."""
    if candidate.cell.path.is_dir() and not candidate.error:
        from edgekit.bundle import Bundle
        from edgekit.cost import cost_of

        return cost_of(Bundle.load(candidate.cell.path).module()).macs
    known = candidate.metadata.get("macs")
    return int(known) if known is not None else None

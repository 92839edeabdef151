"""``edgekit.bench``: files and bundles measured side by side, in the runtimes that run them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.step import no_progress
from edgekit.errors import ExecutionError, UnknownNameError, UsageError
from edgekit.evaluation import Evaluation, paired_difference
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.measure import Cell, Comparison, Measurement, Plan, compare, measure
from edgekit.runtimes.runtime import RUNTIMES, SUFFIXES, Options, runtime_for, runtime_of_file
from edgekit.runtimes.targets.target import Target, target_for

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.compress.step import Progress
    from edgekit.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file in one runtime with so many threads.

    Attributes:
        measurement: Its times, memory and size.
        precision: As the file says; empty for a stranger's file.
        macs: For one input; None when unknown.
        input: What it was timed on: a real sample, or random numbers.
        accuracy: On the test split; None without data.
        comparison: With the baseline; None for the baseline itself, or without one.
        macs_ratio: MACs over the baseline's; no speed-up by itself.
        instructions_ratio: Instructions over the baseline's, where the target counts them.
        accuracy_difference: Points of top-1 over the baseline, and their standard error (paired).
        notes: What should be known of it, the options that were not honoured first.
    """

    measurement: Measurement
    precision: str = ""
    macs: int | None = None
    input: str = ""
    accuracy: Evaluation | None = None
    comparison: Comparison | None = None
    macs_ratio: float | None = None
    instructions_ratio: float | None = None
    accuracy_difference: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values."""
        return {
            **self.measurement.to_dict(raw=raw),
            "precision": self.precision,
            "macs": self.macs,
            "input": self.input,
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "comparison": asdict(self.comparison) if self.comparison else None,
            "macs_ratio": self.macs_ratio,
            "instructions_ratio": self.instructions_ratio,
            "accuracy_difference": self.accuracy_difference,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What a bench found.

    Attributes:
        rows: In the order of what was given.
        target: The machine.
        plan: How long was measured.
        data: The data reference; empty for none.
        warnings: What may have spoilt the figures.
    """

    rows: tuple[Row, ...]
    target: dict[str, Any]
    plan: Plan
    data: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that could not be measured."""
        return tuple(row for row in self.rows if row.measurement.error)

    @property
    def not_honoured(self) -> tuple[str, ...]:
        """Every delegate or option that was asked for and not done."""
        return tuple(
            f"{row.measurement.cell.label}: {text}"
            for row in self.rows
            for text in row.measurement.facts.get("not_honoured", ())
        )

    def to_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """JSON values, with raw samples unless told otherwise."""
        return {
            "target": self.target,
            "plan": asdict(self.plan),
            "data": self.data,
            "warnings": list(self.warnings),
            "not_honoured": list(self.not_honoured),
            "rows": [row.to_dict(raw=raw) for row in self.rows],
        }


@dataclass
class _Candidate:
    """A cell on its way to a row."""

    cell: Cell
    item: int
    home: Path | None
    opened: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    x: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    input: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = self.opened.get("metadata", {})
        return found


def bench(
    items: str | Path | Bundle | Iterable[str | Path | Bundle],
    *,
    runtimes: Sequence[str] = (),
    threads: Sequence[int] = (1,),
    data: Dataset | str | None = None,
    baseline: str | Path | None = None,
    plan: Plan | None = None,
    target: str = "local",
    images: int | None = None,
    progress: Progress = no_progress,
) -> BenchResult:
    """Measures files and bundles, interleaved, each in fresh processes.

    Args:
        items: Exported files, and bundles for their program (in torch) with all their exports.
        runtimes: Only these; all that the files need if empty.
        threads: Each file is measured with each.
        data: Also run the test split of this data set, or reference, through every file.
        baseline: One of the items, to compare the others with, runtime by runtime; the first of several if None.
        plan: How long to measure.
        target: Where: ``local``, ``emulated:cortex-a76``, ``ssh:pi@board``, ``adb:SERIAL``.
        images: Use so many test images at most.
        progress: Told how far the work has come.

    Raises:
        UsageError: If there is nothing to measure, or the baseline is not among the items.

    Example:
        >>> import edgekit
        >>> edgekit.bench(["small/exports/model.onnx"]).rows[0].measurement.percentile(50)  # doctest: +SKIP
        0.0731
    """
    from edgekit.bundle import Bundle
    from edgekit.data.references import load_data

    listed = [items] if isinstance(items, (str, Path, Bundle)) else list(items)
    paths = [_path_of(item) for item in listed]
    plan = plan or Plan()
    dataset = load_data(data) if isinstance(data, str) else data
    opened = target_for(target)
    if opened.counts_instructions and tuple(threads) != (1,):
        raise UsageError(f"{target} counts the instructions of one thread, not of {threads}", "Leave --threads out.")
    candidates = _candidates(paths, runtimes, threads, opened)
    reference = _baseline_index(paths, baseline)
    with opened as place:
        machine = place.describe()
        for candidate in candidates:
            _probe(candidate, place, dataset, plan.batch)
        able = [candidate for candidate in candidates if not candidate.error]
        measured = dict(
            zip(
                (id(candidate) for candidate in able),
                measure([c.cell for c in able], [c.x for c in able], place, plan, progress),
                strict=True,
            )
        )
        accuracies = _accuracies(able, dataset, place, images, progress) if dataset is not None else {}
        after = place.describe()
    rows = [_row(candidate, measured.get(id(candidate)), accuracies) for candidate in candidates]
    rows = _compared(rows, candidates, reference, plan.seed)
    return BenchResult(
        rows=tuple(rows),
        target=machine,
        plan=plan,
        data=dataset.name if dataset is not None else "",
        warnings=tuple(_warnings(machine, after, place, threads)),
    )


def available() -> dict[str, dict[str, Any]]:
    """Every runtime with whether it can be used here, its version, or why not and the line that installs it."""
    return {name: asdict(runtime_for(name).availability()) for name in RUNTIMES}


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


def _candidates(
    paths: Sequence[Path], runtimes: Sequence[str], threads: Sequence[int], target: Target
) -> list[_Candidate]:
    from edgekit.export.run import exported_files

    for wanted in runtimes:
        if wanted not in RUNTIMES:
            raise UnknownNameError("runtime", wanted, RUNTIMES)
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
            fits = name in runtimes if runtimes else name != "torch" or target.has_edgekit
            if not fits:
                continue
            home = path if path.is_dir() else _home_of(path)
            # A file that the user named is shown as named; one of a bundle with the bundle's name before it.
            label = path.name if file == path else f"{path.name}/{file.name}"
            found += [
                _Candidate(Cell(label=label, path=file, runtime=name, threads=count), item, home) for count in threads
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


def _baseline_index(paths: Sequence[Path], baseline: str | Path | None) -> int | None:
    if baseline is None:
        return 0 if len(paths) > 1 else None
    for index, path in enumerate(paths):
        if path.resolve() == Path(baseline).resolve():
            return index
    raise UsageError(
        f"the baseline {baseline} is not among what is measured", "Name it among the files or bundles too."
    )


def _probe(candidate: _Candidate, target: Target, dataset: Dataset | None, batch: int) -> None:
    """Opens the file once, to learn what it takes and to find a real input for it."""
    cell = candidate.cell
    try:
        with target.worker() as worker:
            candidate.opened = worker.open(cell.path, cell.runtime, Options(threads=cell.threads))
    except ExecutionError as error:
        candidate.error = str(error).replace("\n", " ")
        return
    shape = candidate.opened["inputs"][0]["shape"]
    fixed = shape[0] if shape and shape[0] > 0 else None
    if fixed not in (None, batch):
        candidate.error = f"the file is made for a batch of {fixed}, not {batch}"
        return
    real = _real_input(candidate, dataset, batch)
    if real is not None:
        candidate.x, candidate.input = real, "a real sample"
        return
    # Without metadata nothing is transposed, so the input has the file's own shape.
    inner = candidate.metadata.get("input_shape") or [size if size > 0 else 1 for size in shape[1:]]
    candidate.x = np.random.default_rng(0).standard_normal((batch, *inner), dtype=np.float32)
    candidate.input = "random numbers"


def _real_input(candidate: _Candidate, dataset: Dataset | None, batch: int) -> np.ndarray | None:
    if candidate.home is not None and (candidate.home / "samples.npz").is_file():
        with np.load(candidate.home / "samples.npz", allow_pickle=False) as arrays:
            return np.resize(arrays["inputs"], (batch, *arrays["inputs"].shape[1:]))
    if dataset is not None and candidate.metadata.get("preprocessing"):
        from edgekit.data.preprocessing import Preprocessing

        preprocessing = Preprocessing.from_dict(candidate.metadata["preprocessing"])
        x = next(iter(dataset.test.batches(preprocessing, batch)))[0]
        return np.resize(x, (batch, *x.shape[1:]))
    return None


def _accuracies(
    candidates: Sequence[_Candidate], dataset: Dataset, target: Target, images: int | None, progress: Progress
) -> dict[tuple[Path, str], Evaluation | str]:
    """Accuracy for each file and runtime, or why there is none; threads don't change it."""
    from edgekit.data.preprocessing import Preprocessing

    found: dict[tuple[Path, str], Evaluation | str] = {}
    for candidate in candidates:
        cell = candidate.cell
        key = (cell.path, cell.runtime)
        if key in found:
            continue
        described, labels = candidate.metadata.get("preprocessing"), candidate.metadata.get("labels", ())
        if described is None:
            found[key] = "no accuracy: the file does not say how images become inputs"
            continue
        try:
            seen = dataset.seen_by(labels) if candidate.metadata.get("few_classes") else dataset
            found[key] = evaluate_file(
                cell.path, cell.runtime, target, seen.test, Preprocessing.from_dict(described),
                names=labels, limit=images, progress=progress,
            )  # fmt: skip
        except ExecutionError as error:
            found[key] = f"no accuracy: {error.what}"
    return found


def _row(
    candidate: _Candidate, measured: Measurement | None, accuracies: dict[tuple[Path, str], Evaluation | str]
) -> Row:
    cell = candidate.cell
    if measured is None:
        measured = Measurement(cell=cell, size_bytes=0, sha256="", error=candidate.error)
    accuracy = accuracies.get((cell.path, cell.runtime))
    notes = list(measured.facts.get("not_honoured", ()))
    outside = measured.facts.get("operators_outside_delegate") or []
    if outside:
        notes.append(
            f"{len(outside)} operators outside of {measured.facts.get('delegate')}: {', '.join(sorted(set(outside)))}"
        )
    if cell.runtime == "torch" and candidate.metadata.get("precision") == "int8":
        notes.append("torch simulates int8 in float: its accuracy is what to compare with, its time means nothing")
    if isinstance(accuracy, str):
        notes.append(accuracy)
    return Row(
        measurement=measured,
        precision=str(candidate.metadata.get("precision", "")),
        macs=_macs(candidate),
        input=candidate.input,
        accuracy=accuracy if isinstance(accuracy, Evaluation) else None,
        notes=tuple(notes),
    )


def _macs(candidate: _Candidate) -> int | None:
    if candidate.cell.path.is_dir() and not candidate.error:
        from edgekit.bundle import Bundle
        from edgekit.cost import cost_of

        return cost_of(Bundle.load(candidate.cell.path).module()).macs
    known = candidate.metadata.get("macs")
    return int(known) if known is not None else None


def _compared(rows: list[Row], candidates: Sequence[_Candidate], reference: int | None, seed: int) -> list[Row]:
    """Sets each row beside the baseline's row of the same runtime, threads and, if there are several, precision."""
    if reference is None:
        return rows
    compared = []
    for row in rows:
        base = _base_of(row, rows, candidates, reference)
        if base is None or base is row or row.measurement.error or base.measurement.error:
            compared.append(row)
            continue
        difference = None
        if (
            row.accuracy is not None
            and base.accuracy is not None
            and np.array_equal(row.accuracy.labels, base.accuracy.labels)
        ):
            difference = paired_difference(base.accuracy, row.accuracy)
        compared.append(
            replace(
                row,
                comparison=compare(row.measurement, base.measurement, seed) if row.measurement.rounds_ms else None,
                instructions_ratio=_ratio(row.measurement.total_instructions, base.measurement.total_instructions),
                macs_ratio=row.macs / base.macs if row.macs and base.macs else None,
                accuracy_difference=difference,
            )
        )
    return compared


def _ratio(value: int, base: int) -> float | None:
    return value / base if value and base else None


def _base_of(row: Row, rows: Sequence[Row], candidates: Sequence[_Candidate], reference: int) -> Row | None:
    cell = row.measurement.cell
    offered = [
        other
        for other, candidate in zip(rows, candidates, strict=True)
        if candidate.item == reference and other.measurement.cell.threads == cell.threads
    ]
    if len({other.measurement.cell.path for other in offered}) > 1:  # a bundle: like with like
        offered = [other for other in offered if other.measurement.cell.runtime == cell.runtime]
    if row in offered:
        # Inside the baseline itself: its float file is the base of its others.
        return next((other for other in offered if other.precision == "float32"), offered[0])
    preferred = sorted(offered, key=lambda other: (other.precision != "float32", other.precision))
    return preferred[0] if preferred else None


def _warnings(before: dict[str, Any], after: dict[str, Any], target: Target, threads: Sequence[int]) -> list[str]:
    found = []
    if target.counts_instructions:
        found.append("emulated: instructions of one inference were counted, and no time was taken")
    elif not target.times_are_real:
        found.append("these times were emulated: they are no latencies")
    cores = before.get("cores") or 0
    if cores and max(threads) > cores:
        found.append(f"{max(threads)} threads were asked for on {cores} cores")
    if before.get("load_average", 0.0) > 0.5 * max(cores, 1):
        found.append(
            f"the machine was busy (load {before['load_average']:.1f} on {cores} cores): believe ratios, not milliseconds"
        )
    if before.get("governor") not in (None, "performance"):
        found.append(f"the clock governor is {before['governor']}, so the clock may move")
    if before.get("clock_khz") and after.get("clock_khz") and max(before["clock_khz"]) > 1.2 * max(after["clock_khz"]):
        found.append("the clock fell while measuring: the machine may have throttled")
    return found

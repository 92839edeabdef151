"""``edgekit.bench``: files and bundles measured side by side, in the runtimes that run them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.benchmark.candidates import OTHER_BATCH, Candidate, list_candidates, macs_of, paths_of, probe
from edgekit.benchmark.journal import FolderJournal
from edgekit.benchmark.result import SCHEMA, BenchResult, Row
from edgekit.compress.step import no_progress
from edgekit.errors import ExecutionError, UsageError
from edgekit.evaluation import Evaluation, paired_difference
from edgekit.files import sha256_file, write_json
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.choice import describe
from edgekit.runtimes.comparison import compare, half_width
from edgekit.runtimes.measure import Measurement, Plan, files_of, measure
from edgekit.runtimes.runtime import RUNTIMES
from edgekit.runtimes.targets.target import Target, target_for

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.compress.step import Progress
    from edgekit.data.dataset import Dataset


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
    batches: Sequence[int] = (1,),
    output: str | Path | None = None,
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
        batches: Each file is measured with each number of inputs at a time that it takes.
        output: Write the result there, as JSON. What is done is kept beside it, and the same call goes on after it was
            cut off.
        progress: Told how far the work has come.

    Raises:
        UsageError: If there is nothing to measure, the baseline is not among the items, or beside ``output`` lies what was
            kept of another measurement.

    Example:
        >>> import edgekit
        >>> edgekit.bench(["small/exports/model.onnx"]).rows[0].measurement.percentile(50)  # doctest: +SKIP
        0.0731
    """
    from edgekit.data.references import load_data

    paths = paths_of(items)
    plan = plan or Plan()
    dataset = load_data(data) if isinstance(data, str) else data
    opened = target_for(target)
    if opened.counts_instructions and tuple(threads) != (1,):
        raise UsageError(f"{target} counts the instructions of one thread, not of {threads}", "Leave --threads out.")
    if opened.counts_instructions and plan.within is not None:
        raise UsageError(f"{target} counts instructions, which need no more rounds", "Leave --within out.")
    candidates = list_candidates(paths, runtimes, threads, opened, batches)
    reference = _baseline_index(paths, baseline)
    with opened as place:
        machine = place.describe()
        for candidate in candidates:
            probe(candidate, place, dataset, plan)
        candidates, left_out = _of_their_batch(candidates)
        able = [candidate for candidate in candidates if not candidate.error]
        journal = None
        if output is not None:
            identity = _identity(candidates, machine, plan, dataset, images)
            journal = FolderJournal(Path(output).with_name(Path(output).name + ".partial"), identity)
            if journal.rounds:
                left_out.append(f"{journal.rounds} rounds were measured before, by a command that was cut off")
        pairs = _pairs(able, reference)
        if plan.within is not None and not pairs:
            raise UsageError("--within is about ratios, and there is no baseline here", "Give a second file or bundle.")
        found = measure([c.cell for c in able], [c.x for c in able], place, plan, progress, journal, pairs)
        after = place.describe()
        measured = {id(candidate): one for candidate, one in zip(able, found, strict=True)}
        # What crashed or hung when it was timed would do so again.
        fine = [candidate for candidate in able if not measured[id(candidate)].error]
        accuracies = _accuracies(fine, dataset, place, images, plan, journal, progress) if dataset is not None else {}
    rows = [_row(candidate, measured.get(id(candidate)), accuracies) for candidate in candidates]
    rows = _compared(rows, candidates, reference, plan.seed)
    result = BenchResult(
        rows=tuple(rows),
        target=machine,
        target_after={key: value for key, value in after.items() if value != machine.get(key)},
        plan=plan,
        data=dataset.name if dataset is not None else "",
        warnings=(*_warnings(machine, after, place, threads), *_wide(rows, plan), *left_out),
    )
    if output is not None:
        write_json(Path(output), result.to_dict())
    if journal is not None:
        journal.remove()
    return result


def available() -> dict[str, dict[str, Any]]:
    """Every runtime, as :func:`edgekit.runtimes.choice.describe` tells it: whether it can be used here, and its settings."""
    return {name: describe(name) for name in RUNTIMES}


def _baseline_index(paths: Sequence[Path], baseline: str | Path | None) -> int | None:
    if baseline is None:
        return 0 if len(paths) > 1 else None
    for index, path in enumerate(paths):
        if path.resolve() == Path(baseline).resolve():
            return index
    raise UsageError(
        f"the baseline {baseline} is not among what is measured", "Name it among the files or bundles too."
    )


def _of_their_batch(candidates: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Leaves out the batches that a file does not take, and says so, where it takes another one of those asked for."""

    def name(candidate: Candidate) -> str:
        return f"{candidate.cell.label} in {candidate.cell.choice}"

    taken = {name(candidate) for candidate in candidates if not candidate.error}
    out = [one for one in candidates if one.failure == OTHER_BATCH and name(one) in taken]
    sizes: dict[str, list[str]] = {}
    for one in out:
        sizes.setdefault(name(one), []).append(str(one.cell.batch))
    said = [
        f"{which}: made for one batch, not measured with {', '.join(dict.fromkeys(n))}" for which, n in sizes.items()
    ]
    return [one for one in candidates if one not in out], said


def _identity(
    candidates: Sequence[Candidate], machine: dict[str, Any], plan: Plan, dataset: Dataset | None, images: int | None
) -> dict[str, Any]:
    """What makes a measurement the same one."""
    return {
        "schema": SCHEMA,
        "target": machine["target"],
        "cpu": machine["cpu"],
        "plan": asdict(plan),
        "data": [dataset.name, dataset.test.digest] if dataset is not None else [],
        "images": images,
        "files": [
            [one.cell.label, one.cell.choice, one.cell.threads, one.cell.batch]
            + [sha256_file(path) for path in files_of(one.cell.path)]
            for one in candidates
        ],
    }


def _accuracies(
    candidates: Sequence[Candidate],
    dataset: Dataset,
    target: Target,
    images: int | None,
    plan: Plan,
    journal: FolderJournal | None,
    progress: Progress,
) -> dict[tuple[Path, str], Evaluation | str]:
    """Accuracy for each file and runtime, or why there is none; threads don't change it."""
    from edgekit.data.preprocessing import Preprocessing

    found: dict[tuple[Path, str], Evaluation | str] = {}
    for candidate in candidates:
        cell = candidate.cell
        key = (cell.path, cell.choice)
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
                names=labels, limit=images, extra=cell.extra, timeout_s=plan.timeout_s, progress=progress,
                kept=journal.chunks(f"{cell.label} {cell.choice}") if journal is not None else None,
            )  # fmt: skip
        except ExecutionError as error:
            found[key] = f"no accuracy: {error.what}"
    return found


def _row(
    candidate: Candidate, measured: Measurement | None, accuracies: dict[tuple[Path, str], Evaluation | str]
) -> Row:
    cell = candidate.cell
    if measured is None:
        measured = Measurement(cell=cell, size_bytes=0, sha256="", error=candidate.error, failure=candidate.failure)
    accuracy = accuracies.get((cell.path, cell.choice))
    notes = list(measured.facts.get("not_honoured", ()))
    outside = measured.facts.get("operators_outside_delegate") or []
    if outside:
        notes.append(
            f"{len(outside)} operators outside of {measured.facts.get('delegate')}: {', '.join(sorted(set(outside)))}"
        )
    integers = cell.extra.get("precision") == "int8"
    if cell.runtime == "torch" and candidate.metadata.get("precision") == "int8" and not integers:
        notes.append("torch simulates int8 in float: its accuracy is what to compare with, its time means nothing")
    if isinstance(accuracy, str):
        notes.append(accuracy)
    return Row(
        measurement=measured,
        precision=str(candidate.metadata.get("precision", "")),
        macs=macs_of(candidate),
        input=candidate.input,
        accuracy=accuracy if isinstance(accuracy, Evaluation) else None,
        notes=tuple(notes),
    )


def _compared(rows: list[Row], candidates: Sequence[Candidate], reference: int | None, seed: int) -> list[Row]:
    """Sets each row beside the baseline's row of the same runtime, threads and, if there are several, precision."""
    compared = []
    for row, candidate in zip(rows, candidates, strict=True):
        base = _base_of(row, rows, candidates, reference) if reference is not None else None
        if base is None or base is row or row.measurement.error or base.measurement.error:
            original = _program_of(candidate, rows, candidates)
            compared.append(replace(row, agreement=_agreement(row, original)) if original is not None else row)
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
                agreement=_agreement(row, base),
            )
        )
    return compared


def _pairs(able: Sequence[Candidate], reference: int | None) -> list[tuple[int, int]]:
    """Which cells will be set beside which, by their places."""
    rows = [_row(candidate, None, {}) for candidate in able]
    bases = [_base_of(row, rows, able, reference) if reference is not None else None for row in rows]
    places = {id(row): place for place, row in enumerate(rows)}
    return [
        (places[id(row)], places[id(base)])
        for row, base in zip(rows, bases, strict=True)
        if base is not None and base is not row
    ]


def _wide(rows: Sequence[Row], plan: Plan) -> list[str]:
    """The ratios that are not known as well as was asked for."""
    if plan.within is None:
        return []
    return [
        f"{row.measurement.cell.label} in {row.measurement.cell.choice}: its ratio is known within {100 * width:.1f} % after "
        f"{len(row.measurement.rounds_ms)} rounds, not within {100 * plan.within:g} %"
        for row in rows
        if row.comparison and (width := half_width(row.comparison.low, row.comparison.high)) > plan.within
    ]


def _program_of(candidate: Candidate, rows: Sequence[Row], candidates: Sequence[Candidate]) -> Row | None:
    """The row of the bundle's own program, for one of its files."""
    if candidate.home is None or candidate.cell.path.is_dir():
        return None
    return next(
        (
            row
            for row, other in zip(rows, candidates, strict=True)
            if other.cell.path.is_dir() and other.cell.path.resolve() == candidate.home.resolve()
        ),
        None,
    )


def _agreement(row: Row, base: Row) -> float | None:
    if row.accuracy is None or base.accuracy is None or len(row.accuracy.labels) != len(base.accuracy.labels):
        return None
    return float((row.accuracy.predictions == base.accuracy.predictions).mean() * 100)


def _ratio(value: int, base: int) -> float | None:
    return value / base if value and base else None


def _base_of(row: Row, rows: Sequence[Row], candidates: Sequence[Candidate], reference: int) -> Row | None:
    cell = row.measurement.cell
    offered = [
        other
        for other, candidate in zip(rows, candidates, strict=True)
        if candidate.item == reference
        and (other.measurement.cell.threads, other.measurement.cell.batch) == (cell.threads, cell.batch)
    ]
    if len({other.measurement.cell.path for other in offered}) > 1:  # a bundle: like with like
        same = [other for other in offered if other.measurement.cell.runtime == cell.runtime]
        offered = [other for other in same if other.measurement.cell.extra == cell.extra] or same
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
    if after.get("thermal_status") not in (None, "none"):
        found.append(f"the device was warm: its thermal status is {after['thermal_status']}")
    if before.get("clock_khz") and after.get("clock_khz") and max(before["clock_khz"]) > 1.2 * max(after["clock_khz"]):
        found.append("the clock fell while measuring: the machine may have throttled")
    return found

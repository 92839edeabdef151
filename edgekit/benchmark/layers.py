"""``edgekit bench layers``: how long each layer takes in each runtime, beside what it would take at the machine's roofline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.benchmark.candidates import Candidate, choose_input, list_candidates
from edgekit.benchmark.clues import place_operators, record_beside
from edgekit.benchmark.layers_result import LayerCell, LayerColumn, LayerRow, LayersResult, LayerTable
from edgekit.benchmark.mapping import Group, Program, program_groups
from edgekit.benchmark.roofline import Roofline, best_of, measure_roofline, refuse_emulated
from edgekit.compress.step import no_progress
from edgekit.errors import ExecutionError, UsageError
from edgekit.runtimes.choice import named
from edgekit.runtimes.profile import Profile
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.target import Target, target_for

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from edgekit.bundle import Bundle
    from edgekit.compress.step import Progress

RUNS = 50
_BUSY = 0.5
_WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOAT_BYTES = 4


def profile_layers(
    items: str | Path | Bundle | Iterable[str | Path | Bundle],
    *,
    runtimes: Sequence[str] = (),
    threads: int = 1,
    target: str | Target = "local",
    runs: int = RUNS,
    progress: Progress = no_progress,
) -> LayersResult:
    """Times every layer of files and bundles in the runtimes that run them, and measures the machine's roofline.

    Args:
        items: Exported files, and bundles for their program (in torch) with all their exports.
        runtimes: Only these; all that the files need if empty.
        threads: Of the runtimes, and of the roofline.
        target: Where: ``local``, ``ssh:pi@board``, ``adb:SERIAL``.
        runs: Profiled runs of each file.
        progress: Told how far the work has come.

    Returns:
        A table for each bundle, a row for each layer, a column for each file in a runtime. A runtime that can't tell the
        times of its layers is a column with the reason.

    Raises:
        UsageError: If there is nothing to profile, or the target is emulated: its times are no latencies.
        BundleError: If a bundle is damaged.

    Example:
        >>> table = profile_layers("small").tables[0]  # doctest: +SKIP
        >>> table.rows[0].path, table.rows[0].cells[1].ms  # doctest: +SKIP
        ('stem', 0.013)
    """
    from edgekit.bundle import Bundle

    if runs < 1:
        raise UsageError(f"there is nothing to learn from {runs} runs", "Give at least 1.")
    listed = [items] if isinstance(items, (str, Path, Bundle)) else list(items)
    paths = [_path_of(item) for item in listed]
    opened = target_for(target) if isinstance(target, str) else target
    refuse_emulated(opened)
    candidates = list_candidates(paths, runtimes, [threads], opened)
    homes = {home: Bundle.load(home) for home in dict.fromkeys(c.home for c in candidates) if home is not None}
    with opened as place:
        machine = place.describe()
        total = len(candidates) + 2
        progress(0, total, "profiling: the roofline")
        roofline = measure_roofline(place, threads)
        profiled = []
        for done, candidate in enumerate(candidates, 1):
            progress(done, total, f"profiling: {candidate.cell.label} in {candidate.cell.choice}")
            profiled.append((candidate, *_profile(candidate, place, runs)))
        # Once before and once behind: another program's minute should not pass for the machine's limit.
        progress(total - 1, total, "profiling: the roofline")
        roofline = best_of(roofline, measure_roofline(place, threads))
        progress(total, total, "profiling: done")
    tables = []
    for home in dict.fromkeys(candidate.home for candidate in candidates):
        members = [one for one in profiled if one[0].home == home]
        if home is None:
            tables += [_strangers(*one) for one in members]
        else:
            tables.append(_table(home, homes[home], members, roofline))
    return LayersResult(
        tables=tuple(tables), roofline=roofline, target=machine, runs=runs, warnings=tuple(_warnings(machine, threads))
    )


def _path_of(item: str | Path | Bundle) -> Path:
    from edgekit.bundle import Bundle

    if isinstance(item, Bundle):
        if item.path is None:
            raise UsageError("a bundle must lie on disk to be measured", "Save it first: bundle.save(DIR).")
        return item.path
    if not Path(item).exists():
        raise UsageError(f"{item} does not exist", "Give bundle folders or exported files.")
    return Path(item)


def _profile(candidate: Candidate, target: Target, runs: int) -> tuple[Profile | None, str]:
    """The profile of a file in its runtime, or why there is none."""
    cell = candidate.cell
    try:
        with target.worker() as worker:
            candidate.opened = worker.open(cell.path, cell.runtime, Options(threads=cell.threads, extra=cell.extra))
            choose_input(candidate, None, 1)
            return (None, candidate.error) if candidate.error else (worker.profile(candidate.x, runs)[1], "")
    except ExecutionError as error:
        return None, str(error).replace("\n", " ")


def _column(candidate: Candidate, profile: Profile | None, error: str) -> LayerColumn:
    cell = candidate.cell
    column = LayerColumn(
        label=cell.label, file=str(cell.path), runtime=named(cell.runtime, cell.extra), threads=cell.threads,
        precision=str(candidate.metadata.get("precision", "")), error=error, input=candidate.input,
    )  # fmt: skip
    if profile is None:
        return column
    each = _samples(profile, range(len(profile.operators)))
    return replace(
        column,
        whole_ms=float(np.median(profile.whole_ms)),
        whole_interval_ms=median_interval(profile.whole_ms),
        sum_ms=float(np.median(each)),
        profiled_ms=float(np.median(profile.profiled_ms)),
        method=profile.method,
        overhead_ms=profile.overhead_ms,
        profile=profile,
    )


def _samples(profile: Profile, positions: Iterable[int]) -> np.ndarray:
    """The time of some operators together in each run, without what asking for it took."""
    chosen = [profile.operators[position].samples_ms for position in positions]
    return np.sum(np.asarray(chosen, np.float64) - profile.overhead_ms, axis=0)


def median_interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the median from order statistics (Conover 1999, section 3.2): no distribution is assumed.

    Args:
        samples: At least one.

    Returns:
        Two of the samples; with fewer than six, the smallest and the largest, which cover less.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = len(ordered)
    reach = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return float(ordered[low]), float(ordered[high])


def _cell(
    profile: Profile, positions: Sequence[int], attainable_ms: float | None, within: Sequence[str] = ()
) -> LayerCell:
    each = _samples(profile, positions)
    ms = float(np.median(each))
    low, high = median_interval(each)
    # Two steps of the clock are one step's doubt on either side; asking is no more exact than itself.
    hidden = ms <= 0 or ms < max(2 * profile.resolution_ms, profile.overhead_ms) * len(positions)
    return LayerCell(
        ms=ms,
        low_ms=low,
        high_ms=high,
        below_noise=hidden,
        operators=tuple(profile.operators[position].name for position in positions),
        within=tuple(within),
        attainable_ms=attainable_ms,
        share=attainable_ms / ms if attainable_ms is not None and not hidden else None,
    )


def _table(
    home: Path, bundle: Bundle, members: Sequence[tuple[Candidate, Profile | None, str]], roofline: Roofline
) -> LayerTable:
    module = bundle.module()
    program = program_groups(module)
    columns = [_column(*one) for one in members]
    places: list[list[int | str]] = [
        place_operators(program, one.cell.path, one.cell.runtime, one.opened, profile.operators) if profile else []
        for one, profile, _ in members
    ]
    weighing = [_Weighing(candidate, module, bundle.precision) for candidate, _, _ in members]
    keys: list[int | str] = list(range(len(program.groups)))
    keys += sorted({str(place) for found in places for place in found if isinstance(place, str)})
    rows = []
    for key in keys:
        group = program.groups[key] if isinstance(key, int) else None
        cells: list[LayerCell | None] = []
        sizes: dict[str, float] = {}
        for (_, profile, _), found, weigh in zip(members, places, weighing, strict=True):
            size = weigh.size_bytes(group) if group is not None else None
            if size is not None:
                sizes.setdefault(weigh.precision, size)
            positions = [position for position, place in enumerate(found) if place == key]
            if profile is None or not positions:
                cells.append(None)
                continue
            members_of = [group, *_within(program, found, key)] if group is not None else []
            least = [weigh.attainable_ms(roofline, one) for one in members_of]
            known = [ms for ms in least if ms is not None]
            attainable = sum(known) if known and len(known) == len(least) else None
            cells.append(_cell(profile, positions, attainable, [one.cost.path for one in members_of[1:]]))
        if group is None:
            rows.append(LayerRow(path=str(key), cells=tuple(cells)))
        elif group.cost.macs or any(cells):
            rows.append(
                LayerRow(
                    path=group.cost.path, node=group.cost.name, op=group.cost.op, macs=group.cost.macs,
                    fused=tuple(group.nodes[1:]), bytes=sizes, cells=tuple(cells),
                )
            )  # fmt: skip
    columns = [
        replace(column, rows=tuple(_row_name(program, place) for place in found))
        for column, found in zip(columns, places, strict=True)
    ]
    return LayerTable(name=home.name, rows=tuple(rows), columns=tuple(columns))


def _within(program: Program, found: Sequence[int | str], key: int | str) -> list[Group]:
    """The multiplying layers before one that no operator computes by itself: they are within its operator."""
    computed = set(found)
    position = key - 1 if isinstance(key, int) and program.groups[key].cost.macs else -1
    missing = []
    while position >= 0 and not (program.groups[position].cost.macs and position in computed):
        if program.groups[position].cost.macs:
            missing.append(program.groups[position])
        position -= 1
    return missing[::-1]


def _row_name(program: Program, place: int | str) -> str:
    return place if isinstance(place, str) else program.groups[place].cost.name


def _strangers(candidate: Candidate, profile: Profile | None, error: str) -> LayerTable:
    """The table of a file that belongs to no bundle: its operators, as the runtime names them."""
    column = _column(candidate, profile, error)
    rows = []
    for position, operator in enumerate(profile.operators if profile is not None else ()):
        assert profile is not None
        cells = (_cell(profile, [position], None),)
        rows.append(LayerRow(path=operator.name, node=operator.name, op=operator.type, cells=cells))
    column = replace(column, rows=tuple(row.node for row in rows))
    return LayerTable(name=candidate.cell.label, rows=tuple(rows), columns=(column,))


class _Weighing:
    """What a layer reads and writes in one file, and what that takes at the roofline."""

    def __init__(self, candidate: Candidate, module: GraphModule, precision: str) -> None:
        from edgekit.export.lowering import activation_bits

        self.precision = str(candidate.metadata.get("precision") or precision)
        self._activation_bits = activation_bits(module) if precision == "int8" else 32
        # PyTorch computes an int8 program in float, with the integers' values.
        self._simulated = candidate.cell.runtime == "torch" and precision == "int8"
        notes = record_beside(candidate.cell.path).get("lowering", ()) if candidate.cell.path.is_file() else ()
        self._in_float = {note.partition(" computes in float")[0] for note in notes if " computes in float" in note}

    def _is_integer(self, group: Group) -> bool:
        return self.precision == "int8" and self._activation_bits < 32 and group.cost.path not in self._in_float

    def size_bytes(self, group: Group) -> float:
        weights = group.cost.parameters * _WEIGHT_BYTES[self.precision] if self.precision in _WEIGHT_BYTES else None
        activation = self._activation_bits / 8 if self._is_integer(group) else _FLOAT_BYTES
        return float((group.cost.bytes if weights is None else weights) + (group.reads + group.writes) * activation)

    def attainable_ms(self, roofline: Roofline, group: Group) -> float | None:
        if self._simulated or (self._is_integer(group) and self._activation_bits != 8):
            return None
        return roofline.attainable_ms(group.cost.macs, self.size_bytes(group), integer=self._is_integer(group))


def _warnings(machine: dict[str, Any], threads: int) -> list[str]:
    found = []
    cores = machine.get("cores") or 0
    if cores and threads > cores:
        found.append(f"{threads} threads were asked for on {cores} cores")
    if machine.get("load_average", 0.0) > _BUSY * max(cores, 1):
        found.append(
            f"the machine was busy (load {machine['load_average']:.1f} on {cores} cores): the roofline may be measured too "
            "low, and layers too long"
        )
    if machine.get("governor") not in (None, "performance"):
        found.append(f"the clock governor is {machine['governor']}, so the clock may move")
    return found

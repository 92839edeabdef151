"""``edgekit bench compare``: two results that were written, row by row, with a verdict for each and for CI.

What was measured at two times met the machine in two states, and no interval over the rounds of each knows of that: the two
files side by side in one ``edgekit bench`` are the stronger answer. Counted instructions have no such trouble.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.benchmark.result import KIND, SCHEMA
from edgekit.errors import DataError, UsageError
from edgekit.runtimes.choice import named
from edgekit.runtimes.comparison import interval

# Of one file, counted twice: 0.02 % where nothing changed, and an allocator may take its turns.
_COUNTS_AGREE = 0.005


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row of the one result and its row of the other.

    Attributes:
        label: Of the row.
        runtime: With its settings.
        threads: Of the runtime.
        batch: Inputs at a time.
        before: Median milliseconds, or instructions.
        after: Those of the other.
        ratio: after / before.
        low: Lower end of the 95 % interval on it.
        high: Upper end.
        verdict: ``faster``, ``slower`` or ``no difference``.
        same_file: Both measured the same content.
        size_ratio: Bytes on disk, after / before.
        accuracy_difference: Points of top-1 gained; None where one has none, or they saw other data.
        failed: What makes the comparison fail, in words; empty for nothing.
    """

    label: str
    runtime: str
    threads: int
    batch: int
    before: float
    after: float
    ratio: float
    low: float
    high: float
    verdict: str
    same_file: bool
    size_ratio: float
    accuracy_difference: float | None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What two results gave.

    Attributes:
        pairs: The rows that both have.
        counted: Instructions were compared, not times.
        only_before: Rows that the second lacks.
        only_after: Rows that the first lacks.
        notes: What should be known.
    """

    pairs: tuple[Pair, ...]
    counted: bool
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """Everything that a limit does not allow."""
        return tuple(f"{pair.label} in {pair.runtime}: {text}" for pair in self.pairs for text in pair.failed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "failed": list(self.failed)}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a change may cost.

    Attributes:
        slower: Share of the time, or of the instructions: it fails when the whole interval lies above, so noise alone
            seldom does it. None for any.
        larger: Share of the bytes on disk. None for any.
        less_accurate: Points of top-1. None for any.
    """

    slower: float | None = None
    larger: float | None = None
    less_accurate: float | None = None


def compare_results(before: Path, after: Path, limits: Limits | None = None, seed: int = 0) -> Compared:
    """Compares two results of ``edgekit bench``.

    Args:
        before: The older result, a JSON file.
        after: The newer one.
        limits: What fails.
        seed: Of the bootstrap.

    Raises:
        DataError: If a file is no result, or of another schema.
        UsageError: If they have no row in common, or were measured on other machines.

    Example:
        >>> compare_results(Path("monday.json"), Path("today.json")).pairs[0].verdict  # doctest: +SKIP
        'no difference'
    """
    limits = limits or Limits()
    left, right = read_result(before), read_result(after)
    _same_machine(left, right, before, after)
    old, new = _rows(left), _rows(right)
    common = [key for key in new if key in old]
    if not common:
        raise UsageError(
            f"{before} and {after} have no row in common: {', '.join(map(_say, old))} against {', '.join(map(_say, new))}",
            "Rows are matched by file name, runtime, threads and batch.",
        )
    pairs = [_pair(key, old[key], new[key], limits, left["data"] == right["data"], seed) for key in common]
    counted = bool(old[common[0]].get("instructions"))
    notes = []
    if not counted:
        notes.append(
            "the two were measured at two times, and the machine may have changed between; "
            "measured in one `edgekit bench` they would be interleaved"
        )
        notes += [
            f"{pair.label} in {pair.runtime} is the same file and took × {pair.ratio:.2f}: so much the machine changed"
            for pair in pairs
            if pair.same_file and pair.verdict != "no difference"
        ]
    notes += [f"{name}: {text}" for name, result in ((before, left), (after, right)) for text in result["warnings"]]
    return Compared(
        pairs=tuple(pairs),
        counted=counted,
        only_before=tuple(_say(key) for key in old if key not in new),
        only_after=tuple(_say(key) for key in new if key not in old),
        notes=tuple(notes),
    )


def read_result(path: Path) -> dict[str, Any]:
    """A result that ``edgekit bench`` wrote.

    Raises:
        DataError: If it is none, or of another schema.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "Write one: edgekit bench FILES --output FILE.json") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}", "It may be cut off; measure again.") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise DataError(f"{path} is no result of `edgekit bench`", "Write one: edgekit bench FILES --output FILE.json")
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {found.get('schema')}, and this edgekit reads {SCHEMA}",
            f"It was written by edgekit {found.get('edgekit')}; measure again, or compare with that one.",
        )
    return found


def _same_machine(left: Mapping[str, Any], right: Mapping[str, Any], before: Path, after: Path) -> None:
    for key in ("target", "cpu"):
        a, b = left["target"].get(key), right["target"].get(key)
        if a != b:
            raise UsageError(
                f"{before} was measured on {key} {a}, {after} on {b}", "Times of two machines can't be compared."
            )


_Key = tuple[str, str, int, int]


def _rows(result: Mapping[str, Any]) -> dict[_Key, Mapping[str, Any]]:
    """The rows that hold figures, by what names them: the file without its bundle, unless that is not enough."""
    whole = [row for row in result["rows"] if not row["error"]]

    def keys(label: Any) -> list[_Key]:
        return [(label(row), named(row["runtime"], row["settings"]), row["threads"], row["batch"]) for row in whole]

    short = keys(lambda row: row["label"].rpartition("/")[2] if "/" in row["label"] else _own(row))
    chosen = short if len(set(short)) == len(short) else keys(lambda row: row["label"])
    return dict(zip(chosen, whole, strict=True))


def _own(row: Mapping[str, Any]) -> str:
    """The name of a row without a bundle before it: a bundle itself goes by its program."""
    return "program.pt2" if row["runtime"] == "torch" and not row["label"].endswith(".pt2") else str(row["label"])


def _say(key: _Key) -> str:
    label, runtime, threads, batch = key
    return f"{label} in {runtime}, {threads} threads" + (f", batch {batch}" if batch > 1 else "")


def _pair(
    key: _Key, old: Mapping[str, Any], new: Mapping[str, Any], limits: Limits, same_data: bool, seed: int
) -> Pair:
    label, runtime, threads, batch = key
    if old.get("instructions") and new.get("instructions"):
        a, b = float(old["instructions"]["total"]), float(new["instructions"]["total"])
        spread = max(_COUNTS_AGREE, old["instructions_spread"], new["instructions_spread"])
        low, high = b / a * (1 - spread), b / a * (1 + spread)
    else:
        a, b = float(old["p50_ms"]), float(new["p50_ms"])
        low, high = interval(_rounds(new, key), _rounds(old, key), seed, paired=False)
    difference = None
    if old.get("accuracy") and new.get("accuracy") and same_data:
        difference = float(new["accuracy"]["top1"] - old["accuracy"]["top1"])
    size_ratio = new["size_bytes"] / old["size_bytes"]
    failed = []
    if limits.slower is not None and low > 1 + limits.slower:
        failed.append(f"takes × {b / a:.3f} [{low:.3f}, {high:.3f}], more than {limits.slower:.1%} over before")
    if limits.larger is not None and size_ratio > 1 + limits.larger:
        failed.append(f"has × {size_ratio:.3f} the bytes, more than {limits.larger:.1%} over before")
    if limits.less_accurate is not None and difference is not None and -difference > limits.less_accurate:
        failed.append(f"lost {-difference:.2f} points of top-1, more than {limits.less_accurate:g}")
    return Pair(
        label=label,
        runtime=runtime,
        threads=threads,
        batch=batch,
        before=a,
        after=b,
        ratio=b / a,
        low=low,
        high=high,
        verdict="faster" if high < 1 else "slower" if low > 1 else "no difference",
        same_file=bool(old["sha256"]) and old["sha256"] == new["sha256"],
        size_ratio=size_ratio,
        accuracy_difference=difference,
        failed=tuple(failed),
    )


def _rounds(row: Mapping[str, Any], key: _Key) -> Sequence[Sequence[float]]:
    try:
        found: Sequence[Sequence[float]] = row["raw"]["rounds_ms"]
    except KeyError:
        raise DataError(f"{_say(key)} holds no raw samples", "Write the result with edgekit bench --output.") from None
    return found

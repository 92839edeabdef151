"""Exporting with proof, and proving again: what ``edgekit export`` and ``edgekit verify`` do.

A file is written into a folder of its own, run in its real runtime in a child process on real inputs, compared with the
program it was made from, and moved to its place only then. Its record, ``NAME.parity.json``, is written last: a file
without a record was never proved.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Bundle, versions
from edgekit.compress.step import no_progress
from edgekit.cost import cost_of
from edgekit.data.dataset import Split
from edgekit.data.references import load_data
from edgekit.errors import BundleError, ExecutionError, ParityError, UsageError
from edgekit.evaluation import Evaluation, evaluate, paired_difference
from edgekit.export.bisect import LayerMatch, first_divergence, match_layers
from edgekit.export.exporter import EXPORTERS, Exporter, Lowered, check_precision, exporter_for
from edgekit.export.lowering import DQ, activation_bits, weight_nodes
from edgekit.export.parity import TOLERANCES, compare, violations
from edgekit.files import disk_errors, sha256_file, write_json
from edgekit.program import output_node
from edgekit.runtimes.accuracy import evaluate_file
from edgekit.runtimes.choice import settings
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.target import Target, target_for

if TYPE_CHECKING:
    from edgekit.compress.step import Progress
    from edgekit.data.dataset import Dataset

SCHEMA = 1
RECORD = ".parity.json"
# Layers are laid beside each other on so many samples: enough to tell them apart, few enough to hold every tensor.
LAYER_SAMPLES = 4


@dataclass(frozen=True)
class ExportedFile:
    """A file that was proved.

    Attributes:
        path: What the runtime is given.
        files: All files it consists of, ``path`` first.
        parity: The record of its proof, as in ``NAME.parity.json``.
    """

    path: Path
    files: tuple[Path, ...]
    parity: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"path": str(self.path), "files": [str(file) for file in self.files], "parity": self.parity}


@dataclass(frozen=True)
class _Proof:
    """What files are proved on: real inputs, and what the bundle's program gives for them."""

    split: Split
    described: dict[str, Any]
    program: Evaluation
    samples: np.ndarray


def export(
    bundle: Bundle,
    formats: str | Iterable[str],
    *,
    precision: str | None = None,
    data: Dataset | str | None = None,
    output: str | Path | None = None,
    name: str = "model",
    images: int = 5000,
    progress: Progress = no_progress,
) -> list[ExportedFile]:
    """Writes files and proves each in its real runtime.

    Args:
        bundle: What to export.
        formats: ``onnx``, ``tflite``, ``ncnn``, one or several.
        precision: ``float32``, ``float16``, ``bfloat16`` or ``int8``; what the bundle holds if None.
        data: The data set, or its reference, whose test split the files are proved on; the bundle's own if None, and
            its few samples if it has seen no data.
        output: Where to write; ``exports`` in the bundle's folder if None.
        name: Of the files, before their suffix.
        images: Prove on so many test images at most.
        progress: Told how far the work has come.

    Returns:
        The files in order of the formats.

    Raises:
        UsageError: If there is nothing to prove the files on, or no place for them.
        UnsupportedOperatorError: If a format lacks an operator; nothing was written.
        ParityError: If a file does not compute what the program does; it was not kept.

    Example:
        >>> import edgekit
        >>> file, = edgekit.export(edgekit.load("zoo:digits-cnn"), "onnx", data="digits", output="out")  # doctest: +SKIP
        >>> file.parity["accuracy"]["file_top1"]  # doctest: +SKIP
        99.25925925925925
    """
    chosen = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    if not chosen:
        raise UsageError("no format is given", f"Choose from {', '.join(EXPORTERS)}.")
    exporters = [exporter_for(one) for one in chosen]
    precision = precision or bundle.precision
    check_precision(bundle, precision, exporters)
    if output is None and bundle.path is None:
        raise UsageError("the bundle lies in no folder, so there is no place for its files", "Give an output folder.")
    folder = Path(output) if output is not None else Path(str(bundle.path)) / "exports"
    # Every format is lowered before anything is proved: a refused operator should not come after minutes of work.
    lowered = [exporter.lower(bundle, precision) for exporter in exporters]
    proof = _proof(bundle, data, images, progress)
    stem = name if precision == "float32" else f"{name}.{precision}"
    with target_for("local") as target:
        return [
            _export_one(bundle, exporter, low, folder / f"{stem}{exporter.suffix}", proof, target, progress)
            for exporter, low in zip(exporters, lowered, strict=True)
        ]


def _proof(bundle: Bundle, data: Dataset | str | None, images: int, progress: Progress) -> _Proof:
    reference = data if data is not None else bundle.data or None
    dataset = load_data(reference) if isinstance(reference, str) else reference
    if dataset is not None:
        dataset = bundle.view_of(dataset)
        split, limit = dataset.test, min(images, len(dataset.test))
        described = {"reference": dataset.name, "split": "test", "images": limit, "digest": split.digest}
        split = split if limit == len(split) else split.part(split.spread(limit))
    elif bundle.samples is not None:
        split = Split(bundle.samples.inputs, bundle.samples.labels)
        described = {
            "reference": "the samples in the bundle",
            "split": "samples",
            "images": len(split),
            "digest": split.digest,
        }
    else:
        raise UsageError(
            "there is nothing to prove the files on: the bundle has seen no data",
            "Give real images with --data, for example --data folder:photos.",
        )
    found = evaluate(bundle.module(), split, bundle.preprocessing, names=bundle.labels, progress=progress)
    samples = bundle.samples.inputs if bundle.samples is not None else None
    if samples is None:
        samples = next(iter(split.batches(bundle.preprocessing, LAYER_SAMPLES)))[0]
    return _Proof(split, described, found, samples[:LAYER_SAMPLES])


def _export_one(
    bundle: Bundle, exporter: Exporter, lowered: Lowered, path: Path, proof: _Proof, target: Target, progress: Progress
) -> ExportedFile:
    cost = cost_of(bundle.module())
    metadata = {
        "edgekit": SCHEMA,
        "input_layout": exporter.input_layout,
        "input_shape": list(bundle.input_shape),
        "preprocessing": bundle.preprocessing.to_dict() if bundle.preprocessing else None,
        "labels": list(bundle.labels),
        "few_classes": bundle.few_classes,
        "precision": lowered.precision,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "bundle": bundle.fingerprint,
    }
    with _workplace(path) as folder:
        progress(0, 1, f"writing {path.name}")
        written = exporter.write(lowered, folder / path.name, metadata)
        progress(1, 1, f"writing {path.name}")
        record = _prove(bundle, exporter, lowered, written, proof, target, progress)
        # An older record must not vouch for the new file, not even for a moment.
        record_of(path).unlink(missing_ok=True)
        moved = tuple(file.replace(path.with_name(file.name)) for file in written)
    write_json(record_of(path), record)
    return ExportedFile(path, moved, record)


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A folder beside the file to be, on the same disk; one that a killed run left behind is cleared away."""
    folder = Path(os.path.abspath(path)).with_name(f".{path.name}.exporting")
    created = not folder.parent.exists()
    with disk_errors(path):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if created:
                with contextlib.suppress(OSError):  # not empty: something was kept
                    folder.parent.rmdir()


def _prove(
    bundle: Bundle,
    exporter: Exporter,
    lowered: Lowered,
    written: Sequence[Path],
    proof: _Proof,
    target: Target,
    progress: Progress,
) -> dict[str, Any]:
    path, precision = written[0], lowered.precision
    try:
        deployed = evaluate_file(
            path, exporter.runtime, target, proof.split, bundle.preprocessing, names=bundle.labels, progress=progress
        )
    except ExecutionError as error:
        raise ParityError(
            f"{path.name} was written and {exporter.runtime} can't run it: {error.what}",
            "The file was not kept. The format's converter produced something that its runtime refuses.",
        ) from error
    simulated = evaluate(lowered.module, proof.split, bundle.preprocessing, progress=progress)
    if simulated.logits.shape != deployed.logits.shape:
        raise ParityError(
            f"{path.name} gives {deployed.logits.shape[1]} numbers for an input, the program {simulated.logits.shape[1]}",
            "The file was not kept. Please report the network: a lowering that changes results is a bug.",
        )
    agreement = compare(simulated.logits, deployed.logits, step=_output_step(lowered))
    tolerance = TOLERANCES[_kind(lowered)]
    found = violations(agreement, tolerance, float(np.abs(simulated.logits).max(initial=0.0)))
    layers, facts = _layers(lowered, path, exporter.runtime, proof.samples, target)
    if found:
        first = first_divergence(layers, _kind(lowered))
        where = f"the first layer that differs is {first.layer}" if first else "no single layer stands out"
        raise ParityError(
            f"{path.name} does not compute what the program does: {'; '.join(found)}; {where}",
            "The file was not kept. Please report the network: a lowering that changes results is a bug.",
        )
    difference, error_of = paired_difference(proof.program, deployed)
    return {
        "schema": SCHEMA,
        "format": exporter.name,
        "runtime": exporter.runtime,
        "precision": precision,
        "files": {file.name: {"sha256": sha256_file(file), "size_bytes": file.stat().st_size} for file in written},
        "size_bytes": sum(file.stat().st_size for file in written if file.suffix != ".json"),
        "bundle": bundle.fingerprint,
        "data": proof.described,
        "agreement": agreement.to_dict(),
        "agreement_with_program": compare(proof.program.logits, deployed.logits).to_dict(),
        "tolerance": asdict(tolerance),
        "accuracy": {
            "program_top1": proof.program.top1,
            "lowered_top1": simulated.top1,
            "file_top1": deployed.top1,
            "difference": difference,
            "difference_standard_error": error_of,
        },
        "layers": [asdict(layer) for layer in layers],
        "lowering": [*lowered.notes, *exporter.remarks(lowered, path)],
        "int8_macs_share": _integer_share(lowered, facts) if precision == "int8" else None,
        "runtime_facts": facts,
        "versions": versions(),
    }


def _kind(lowered: Lowered) -> str:
    """The row of tolerances: the precision, but where activations are not int8."""
    if lowered.precision != "int8":
        return lowered.precision
    return {8: "int8", 16: "int16", 32: "float32"}[activation_bits(lowered.module)]


def _output_step(lowered: Lowered) -> float | None:
    """The scale of the output where the program quantizes it."""
    node = output_node(lowered.module)
    return float(node.args[1]) if node.target is DQ else None  # type: ignore[arg-type]


def _layers(
    lowered: Lowered, path: Path, runtime: str, samples: np.ndarray, target: Target
) -> tuple[list[LayerMatch], dict[str, Any]]:
    """Every layer beside its tensor in the file, each sample run by itself: batches hide in some tensors' first dimension."""
    with target.worker() as worker:
        tells = lowered.precision == "int8" and "kernels" in settings(runtime)
        facts = worker.open(path, runtime, Options(extra={"kernels": True} if tells else {}))["facts"]
    taps: dict[str, list[np.ndarray]] = {}
    with target.worker() as worker:
        worker.open(path, runtime, Options(taps=("*",)))
        for sample in samples:
            output, tapped = worker.run(sample[None])
            for name, value in {**tapped, "output": output}.items():
                taps.setdefault(name, []).append(value)
    joined = {name: np.concatenate(v) for name, v in taps.items() if v[0].ndim and len(v) == len(samples)}
    return match_layers(lowered, samples, joined), facts


def _integer_share(lowered: Lowered, facts: dict[str, Any]) -> float | None:
    """Share of the MACs in layers that the runtime computes in integers, as it told; 0 to 1, None where it can't tell.

    Layers are told apart by the number of their weights; of equal ones the cheaper is taken, so nothing is overstated.
    """
    if "integer_weights" not in facts:
        return None
    layers = [layer for layer in cost_of(lowered.module).layers if layer.macs]
    nodes = {node.name: node for node in weight_nodes(lowered.module)}
    waiting = sorted(
        (
            (math.prod(nodes[layer.name].args[1].meta["val"].shape), layer.macs)
            for layer in layers
            if layer.name in nodes
        ),
        key=lambda pair: pair[1],
    )
    done = 0
    for weights in facts["integer_weights"]:
        found = next((pair for pair in waiting if pair[0] == weights), None)
        if found is not None:
            waiting.remove(found)
            done += found[1]
    return done / max(sum(layer.macs for layer in layers), 1)


def record_of(path: Path) -> Path:
    """Where the record of a file's proof lies."""
    return path.with_name(path.name + RECORD)


def exported_files(bundle: Path) -> list[Path]:
    """The proved files of a bundle folder, by name."""
    records = sorted((bundle / "exports").glob(f"*{RECORD}"))
    return [record.with_name(record.name.removesuffix(RECORD)) for record in records]


def verify(path: str | Path, *, bundle: str | Path | None = None) -> list[dict[str, Any]]:
    """Proves exported files again: the same content, and the same outputs on the samples of their bundle.

    Args:
        path: An exported file, or a bundle folder for all its exports.
        bundle: The bundle's folder, where the file does not lie in its ``exports``.

    Returns:
        For each file ``{"path", "parity"}``, with the agreement found now.

    Raises:
        ParityError: If a file was changed or computes something else; the first layer that differs is named.
        UsageError: If there is nothing to verify, or the bundle is not found.
    """
    path = Path(path)
    if path.is_dir():
        files = exported_files(path)
        if not files:
            raise UsageError(f"{path} has no exported files", f"Write some: edgekit export {path} --to onnx")
        bundle = path
    elif path.is_file():
        files = [path]
    else:
        raise UsageError(f"{path} does not exist", "Give an exported file or a bundle folder.")
    home = Path(bundle) if bundle is not None else path.resolve().parent.parent
    if not (home / "bundle.json").is_file():
        raise UsageError(f"the bundle of {path} is not where it is looked for ({home})", "Name it with --bundle DIR.")
    loaded = Bundle.load(home)
    if loaded.samples is None:
        raise BundleError(f"{home} holds no samples to verify with", "Compress it with --data, or export it again.")
    with target_for("local") as target:
        return [_verify_one(file, loaded, target) for file in files]


def _verify_one(path: Path, bundle: Bundle, target: Target) -> dict[str, Any]:
    record = _read_record(path)
    if record["bundle"] != bundle.fingerprint:
        raise ParityError(
            f"{path} was made from another bundle than {bundle.path}",
            "Export it again, or name its bundle with --bundle.",
        )
    changed = [
        name
        for name, known in record["files"].items()
        if not path.with_name(name).is_file() or sha256_file(path.with_name(name)) != known["sha256"]
    ]
    exporter, precision = exporter_for(record["format"]), record["precision"]
    lowered = exporter.lower(bundle, precision)
    assert bundle.samples is not None
    samples = bundle.samples.inputs
    split = Split(samples, bundle.samples.labels)
    simulated = evaluate(lowered.module, split, None)
    try:
        deployed = evaluate_file(path, exporter.runtime, target, split, None)
        agreement = compare(simulated.logits, deployed.logits, step=_output_step(lowered))
        found = violations(agreement, TOLERANCES[_kind(lowered)], float(np.abs(simulated.logits).max(initial=0.0)))
        layers, _ = _layers(lowered, path, exporter.runtime, samples[:LAYER_SAMPLES], target)
    except ExecutionError as error:
        found, layers = [f"{exporter.runtime} can't run it: {error.what}"], []
    if changed or found:
        first = first_divergence(layers, _kind(lowered), record["layers"])
        where = f"; the first layer that differs is {first.layer}" if first else ""
        if layers and not first:
            where = "; no layer differs by more than rounding"
        what = [f"{name} is not the file that was proved (SHA-256)" for name in changed] + found
        raise ParityError(f"{path} fails: {'; '.join(what)}{where}", "Export it again.")
    return {"path": str(path), "parity": {**record, "agreement": agreement.to_dict(), "verified_on": "samples"}}


def _read_record(path: Path) -> dict[str, Any]:
    place = record_of(path)
    if not place.is_file():
        raise UsageError(
            f"{path} has no record of a proof ({place.name} is missing)",
            "Only files written by edgekit export can be verified.",
        )
    try:
        record: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise BundleError(
                f"{place} has schema {record['schema']}, this edgekit reads {SCHEMA}", "Export the file again."
            )
        missing = {"bundle", "files", "format", "precision", "layers"} - record.keys()
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{place} is damaged: {type(error).__name__}: {error}", "Export the file again.") from error

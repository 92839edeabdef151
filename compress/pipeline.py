"""Running a list of steps, resumably: what ``edgekit compress`` does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle
from edgekit.compress.step import Context, Step, no_progress, parse_step
from edgekit.data.references import load_data
from edgekit.errors import EdgekitError, StepError, UsageError
from edgekit.files import sha256_file

if TYPE_CHECKING:
    from edgekit.compress.step import Progress
    from edgekit.data.dataset import Dataset

# Real images that travel with a bundle, so that any device can check itself.
SAMPLE_COUNT = 16


def compress(
    bundle: Bundle,
    steps: Step | str | Iterable[Step | str],
    data: Dataset | str | None = None,
    *,
    output: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = no_progress,
) -> Bundle:
    """Applies steps in order and records what each did.

    Args:
        bundle: What to compress; it is not changed.
        steps: Steps, or their text form such as ``"prune-channels:macs=0.5"``.
        data: The data set, or its reference such as ``"digits"``.
        output: The bundle folder to write. Beside it, checkpoints are kept until the work is done: the same call after
            a kill goes on where it stopped, and ends in the same bundle.
        device: Where to train.
        seed: Of every random choice.
        progress: Told how far the work has come.

    Returns:
        The compressed bundle, with real samples and their expected outputs if there was data.

    Raises:
        StepError: If a step fails; the error names it and those before it.

    Example:
        >>> import edgekit
        >>> small = edgekit.compress(edgekit.load("zoo:digits-cnn"), ["prune-channels:macs=0.5,epochs=2"], "digits")
    """
    listed = [steps] if isinstance(steps, (Step, str)) else list(steps)
    ordered = [parse_step(step) if isinstance(step, str) else step for step in listed]
    if not ordered:
        raise UsageError("there is no step to apply", "Give --step NAME or --recipe FILE.")
    dataset = load_data(data) if isinstance(data, str) else data
    if dataset is not None:
        dataset = bundle.view_of(dataset)
    work = _work_folder(Path(output)) if output is not None else None
    context = Context(data=dataset, device=device, seed=seed, progress=progress)
    state = _fingerprint(bundle, dataset, seed)
    for position, step in enumerate(ordered):
        state = _mix(state, [step.to_dict(), *(sha256_file(path) for path in step.reads())])
        done = work / f"{position:02d}-{step.name}-{state[:16]}" if work else None
        bundle = _run(bundle, step, ordered[:position], context, done)
        if dataset is not None:
            dataset = bundle.view_of(dataset)  # a step may have left classes out
            context = replace(context, data=dataset)
        if done is not None and position + 1 < len(ordered):
            # What a resumed command would go on from.
            bundle = replace(Bundle.load(done / "bundle"), path=None)
    if dataset is not None:
        bundle = replace(bundle, data=dataset.name)
        bundle = _with_samples(bundle, dataset)
    if output is not None:
        bundle = bundle.save(output)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    return bundle


def _run(bundle: Bundle, step: Step, before: Sequence[Step], context: Context, folder: Path | None) -> Bundle:
    """Applies one step, or takes its result from an earlier run of the same command."""
    finished = folder / "bundle" if folder else None
    if finished is not None and (finished / "bundle.json").is_file():
        context.progress(1, 1, f"{step.name}: done by an earlier run")
        return replace(Bundle.load(finished), path=None)
    checkpoints = folder / "checkpoints" if folder else None
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        step.requires(bundle)
        result, report = step.apply(bundle, replace(context, checkpoints=checkpoints))
        step.ensures(bundle, result)
    except EdgekitError as error:
        _remove_empty(checkpoints)
        passed = f" (after {', '.join(s.name for s in before)})" if before else ""
        # A step that names itself need not be named again.
        where = "" if error.what.startswith(step.name) and not passed else f"the step {step.name}{passed}: "
        if isinstance(error, UsageError):
            raise UsageError(where + error.what, error.remedy) from error
        raise StepError(where + error.what, error.remedy) from error
    result = replace(result, steps=(*bundle.steps, {**step.to_dict(), "report": report}))
    if finished is not None:
        result = replace(result.save(finished), path=None)
        if checkpoints is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _remove_empty(folder: Path | None) -> None:
    """Removes a step's folders that hold nothing to resume from: a refused command leaves no trace."""
    for path in (folder, *(folder.parents[:2] if folder is not None else ())):
        with contextlib.suppress(OSError):  # not empty
            if path is not None:
                path.rmdir()


def _with_samples(bundle: Bundle, dataset: Dataset) -> Bundle:
    if bundle.preprocessing is None or not len(dataset.validation):
        return bundle
    x, y = next(iter(dataset.validation.batches(bundle.preprocessing, SAMPLE_COUNT, limit=SAMPLE_COUNT)))
    return bundle.with_samples(x, y)


def _work_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.work")


def _fingerprint(bundle: Bundle, dataset: Dataset | None, seed: int) -> str:
    """Tells whether a checkpoint belongs to this very work: the same weights, data and seed."""
    description = bundle.describe()
    parts = [bundle.fingerprint, description["preprocessing"], description["input"], seed]
    if dataset is not None:
        parts += [dataset.train.digest, dataset.validation.digest]
    return _mix("", parts)


def _mix(state: str, value: Any) -> str:
    return hashlib.sha256((state + json.dumps(value, sort_keys=True)).encode()).hexdigest()

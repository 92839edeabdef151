"""Accuracy of a file in its runtime: real inputs go through the file itself, in a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.evaluation import Evaluation, from_logits
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.target import Target

if TYPE_CHECKING:
    from edgekit.data.dataset import Split
    from edgekit.data.preprocessing import Preprocessing


def evaluate_file(
    path: Path,
    runtime: str,
    target: Target,
    split: Split,
    preprocessing: Preprocessing | None,
    *,
    names: Sequence[str] = (),
    limit: int | None = None,
    threads: int = 1,
    extra: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Evaluation:
    """Runs a file over a split.

    Args:
        path: The file, or a bundle folder for torch.
        runtime: Its name.
        target: Where to run it.
        split: Inputs and labels.
        preprocessing: How images become inputs; None for a split of float inputs.
        names: Class names.
        limit: Use so many, evenly over the split.
        threads: Of the runtime.
        extra: Settings of the runtime that differ from its defaults.
        progress: Told how far it has come.

    Raises:
        ExecutionError: If the file can't be run.
    """
    count = len(split) if limit is None else min(limit, len(split))
    outputs, labels = [], []
    with target.worker() as worker:
        worker.open(path, runtime, Options(threads=threads, extra=extra or {}))
        for x, y in split.batches(preprocessing, target.batch_size, limit=limit):
            outputs.append(worker.run(x)[0])
            labels.append(y)
            progress(sum(map(len, labels)), count, f"running {path.name} in {runtime}")
    logits = np.concatenate(outputs)
    return from_logits(logits.reshape(len(logits), -1), np.concatenate(labels), names)

"""Accuracy of a file in its runtime: real inputs go through the file itself, in a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekit.evaluation import Evaluation, from_logits
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.link import RUN_TIMEOUT_S
from edgekit.runtimes.targets.target import Target

if TYPE_CHECKING:
    from edgekit.data.dataset import Split
    from edgekit.data.preprocessing import Preprocessing


class Chunks(Protocol):
    """Outputs that are kept while a data set is run, so that it can go on after it was cut off."""

    def get(self, number: int) -> np.ndarray | None:
        """A chunk that was kept."""

    def put(self, number: int, outputs: np.ndarray) -> None:
        """Keeps a chunk."""


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
    kept: Chunks | None = None,
    timeout_s: float = RUN_TIMEOUT_S,
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
        kept: Outputs that are known already, by chunk; the others are added.
        timeout_s: How long a chunk may take.
        progress: Told how far it has come.

    Raises:
        ExecutionError: If the file can't be run.
    """
    count = len(split) if limit is None else min(limit, len(split))
    outputs, labels = [], []
    with target.worker() as worker:
        worker.open(path, runtime, Options(threads=threads, extra=extra or {}))
        for number, (x, y) in enumerate(split.batches(preprocessing, target.batch_size, limit=limit)):
            known = kept.get(number) if kept is not None else None
            found = known if known is not None and len(known) == len(x) else worker.run(x, timeout_s)[0]
            if kept is not None and found is not known:
                kept.put(number, found)
            outputs.append(found)
            labels.append(y)
            progress(sum(map(len, labels)), count, f"running {path.name} in {runtime}")
    logits = np.concatenate(outputs)
    return from_logits(logits.reshape(len(logits), -1), np.concatenate(labels), names)

"""The sensitivity table of a network: one row for each layer, from one pass over the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle
from edgekit.compress.quantize.session import Session
from edgekit.compress.quantize.static import Quantize
from edgekit.compress.step import Context, Progress, no_progress
from edgekit.data.references import load_data
from edgekit.evaluation import evaluate, paired_difference

if TYPE_CHECKING:
    from edgekit.data.dataset import Dataset


def sensitivity_table(
    bundle: Bundle,
    data: Dataset | str,
    step: Quantize | None = None,
    *,
    images: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """What each layer costs when it is quantized alone, and what is left of it when all are.

    Args:
        bundle: With float weights; it is not changed.
        data: The data set, or its reference. Calibrates on training images, judges on validation images.
        step: How to quantize; the default settings if None.
        images: Validation images to judge by, at most.
        seed: Of the choice of calibration images.
        progress: Told how far the work has come.

    Returns:
        For each layer, the most sensitive first: ``layer``, ``bits``, ``alone_sqnr_db`` (of the network's output),
        ``alone_drop`` and ``alone_drop_standard_error`` (points of top-1), ``inside_sqnr_db`` and ``channel_sqnr_db`` (of
        the layer's own output in the wholly quantized network).
    """
    settings = step or Quantize()
    settings.requires(bundle)
    dataset = load_data(data) if isinstance(data, str) else data
    dataset = bundle.view_of(dataset)
    session = Session(bundle, settings, Context(data=dataset, seed=seed, progress=progress))
    choice = session.first_choice()
    limit = min(images, len(dataset.validation))
    reference = evaluate(session.floats, dataset.validation, bundle.preprocessing, limit=limit)
    _, report = session.quantized(choice)
    alone = session.sensitivities(choice)
    rows = []
    for position, row in enumerate(report["quantized_layers"]):
        progress(position, len(alone), "judging layer by layer")
        module = session.alone(choice, row["layer"])
        found = evaluate(module, dataset.validation, bundle.preprocessing, limit=limit)
        difference, error = paired_difference(reference, found)
        rows.append(
            {
                "layer": row["layer"],
                "bits": row["bits"],
                "alone_sqnr_db": alone[row["layer"]],
                "alone_drop": 0.0 - difference,
                "alone_drop_standard_error": error,
                "inside_sqnr_db": row["sqnr_db"],
                "channel_sqnr_db": row["channel_sqnr_db"],
            }
        )
    progress(1, 1, "judging layer by layer")
    return sorted(rows, key=lambda row: row["alone_sqnr_db"])

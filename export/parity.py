"""How near an exported file is to the program it was made from, and how near it has to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekit.evaluation import sqnr


@dataclass(frozen=True)
class Agreement:
    """Two sets of outputs for the same inputs.

    Attributes:
        samples: How many inputs.
        max_abs: Largest absolute difference of an output.
        sqnr_db: Signal to quantization noise ratio, 10 log10(sum r² / sum (r - o)²), in dB; None when nothing differs.
        top1_percent: How often both name the same class, in percent.
        decided_top1_percent: Likewise, an input counting as agreed where the reference prefers its class over the other's
            by no more than four times the RMS difference of that input's outputs: rounding decides there, and with a
            thousand classes it decides often.
        within_two_steps_percent: Outputs that differ by at most two steps of the output scale, in percent; None in float.
    """

    samples: int
    max_abs: float
    sqnr_db: float | None
    top1_percent: float
    decided_top1_percent: float
    within_two_steps_percent: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Tolerance:
    """What a file must keep to be believed.

    Attributes:
        relative_max: Bound on max |Δ| relative to the largest reference output (at least 1); None for none.
        sqnr_db: Least SQNR in dB.
        top1_percent: Least agreement of the first class, near ties aside.
        within_two_steps_percent: Least share of outputs within two steps of the output scale; None for none.
    """

    relative_max: float | None
    sqnr_db: float
    top1_percent: float
    within_two_steps_percent: float | None = None


# A difference of two outputs has sqrt(2) times the noise of one; four times is beyond chance for any class.
NOISE_MARGIN = 4.0
# float32: formats reorder sums and fold batch norms; seen on ResNet-20/56, MobileNetV2 and SqueezeNet: below 1e-4, above
# 90 dB. float16, bfloat16: compared with the program whose weights are rounded alike, so the same arithmetic remains.
# int8: rounding ties and the fixed-point rescaling differ by one step a layer; seen on ResNet-20: above 25 dB.
TOLERANCES = {
    "float32": Tolerance(relative_max=1e-3, sqnr_db=60.0, top1_percent=99.0),
    "float16": Tolerance(relative_max=1e-2, sqnr_db=50.0, top1_percent=99.0),
    "bfloat16": Tolerance(relative_max=1e-2, sqnr_db=50.0, top1_percent=99.0),
    # Sums are exact on the device and float32 in the program; seen: above 80 dB.
    "int16": Tolerance(relative_max=1e-2, sqnr_db=50.0, top1_percent=99.0),
    "int8": Tolerance(relative_max=None, sqnr_db=18.0, top1_percent=95.0, within_two_steps_percent=95.0),
}


def compare(reference: np.ndarray, output: np.ndarray, *, step: float | None = None) -> Agreement:
    """Compares the outputs of a file with those of its reference.

    Args:
        reference: Expected outputs, shape (n, …).
        output: The file's outputs, same shape.
        step: Scale of the quantized output; None in float.

    Raises:
        ValueError: If the shapes differ.
    """
    if reference.shape != output.shape:
        raise ValueError(f"the file gives outputs of shape {output.shape}, the program {reference.shape}")
    r, o = reference.astype(np.float64), output.astype(np.float64)
    within = None
    if step:
        # A hair above 2: both sides are multiples of the step, held in float32.
        within = float(np.mean(np.abs(r - o) <= 2.001 * step) * 100)
    rows = r.reshape(len(r), -1), o.reshape(len(o), -1)
    finite = bool(np.isfinite(o).all())
    return Agreement(
        samples=len(r),
        max_abs=float(np.abs(r - o).max(initial=0.0)) if finite else float("inf"),
        sqnr_db=sqnr(r, o),
        top1_percent=float(np.mean(rows[0].argmax(1) == rows[1].argmax(1)) * 100) if finite else 0.0,
        decided_top1_percent=_decided(*rows) if finite else 0.0,
        within_two_steps_percent=within,
    )


def _decided(reference: np.ndarray, output: np.ndarray) -> float:
    each = np.arange(len(reference))
    first, other = reference.argmax(1), output.argmax(1)
    margin = reference[each, first] - reference[each, other]
    noise = np.sqrt(np.mean((reference - output) ** 2, axis=1))
    return float(np.mean((first == other) | (margin <= NOISE_MARGIN * noise)) * 100)


def violations(agreement: Agreement, tolerance: Tolerance, largest: float) -> list[str]:
    """What a comparison breaks, in words with both numbers; empty when it holds.

    Args:
        agreement: The comparison.
        tolerance: The bounds.
        largest: Largest magnitude of a reference output.
    """
    found = []
    if tolerance.relative_max is not None:
        bound = tolerance.relative_max * max(1.0, largest)
        if not agreement.max_abs <= bound:
            found.append(f"max |Δ| {agreement.max_abs:.3g} is above {bound:.3g}")
    if agreement.sqnr_db is not None and not agreement.sqnr_db >= tolerance.sqnr_db:
        found.append(f"SQNR {agreement.sqnr_db:.1f} dB is below {tolerance.sqnr_db:.0f} dB")
    # With few samples one flip near a tie is no evidence: allow it.
    allowed = min(tolerance.top1_percent, 100 - 100.0 / agreement.samples)
    if agreement.decided_top1_percent < allowed:
        agreed = agreement.decided_top1_percent
        found.append(f"top-1 agrees on {agreed:.1f} % of the samples, near ties aside, below {allowed:.1f} %")
    within, least = agreement.within_two_steps_percent, tolerance.within_two_steps_percent
    if within is not None and least is not None and within < least:
        found.append(f"{within:.1f} % of the outputs are within two steps of the output scale, below {least:.0f} %")
    return found

"""``edgekit.bench``: files and bundles measured side by side, and results compared."""

from edgekit.benchmark.compare import Limits, compare_results
from edgekit.benchmark.result import BenchResult, Row
from edgekit.benchmark.run import available, bench
from edgekit.benchmark.sustained import sustain

__all__ = ["BenchResult", "Limits", "Row", "available", "bench", "compare_results", "sustain"]

"""``edgekit.bench``: files and bundles measured side by side, in the runtimes that run them."""

from edgekit.benchmark.result import BenchResult, Row
from edgekit.benchmark.run import available, bench

__all__ = ["BenchResult", "Row", "available", "bench"]

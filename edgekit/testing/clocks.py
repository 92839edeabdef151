"""Stopwatches whose times are known, for what is settled by the clock."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from edgekit.bundle import Bundle
from edgekit.compress.prune.stopwatch import Stopwatch
from edgekit.cost import cost_of
from edgekit.runtimes.comparison import Comparison


class KnownStopwatch(Stopwatch):
    """Says what networks take instead of running them."""

    @abstractmethod
    def time(self, bundle: Bundle) -> float:
        """What the network takes, in any unit."""

    def ratios(self, bundles: Iterable[Bundle]) -> list[Comparison]:
        whole = self.time(self._original)
        ratios = [self.time(bundle) / whole for bundle in bundles]
        return [
            Comparison(label="trial", baseline="original", ratio=r, low=r, high=r, verdict="faster") for r in ratios
        ]


class Fours(KnownStopwatch):
    """A runtime that takes :func:`time_in_fours`."""

    def time(self, bundle: Bundle) -> float:
        return time_in_fours(bundle)


def time_in_fours(bundle: Bundle) -> float:
    """Goes with the MACs, four times as long where a width is no multiple of four; the last layer takes none."""
    layers = [layer for layer in cost_of(bundle.module()).layers if layer.macs]
    return sum(layer.macs * (4 if layer.output_shape[1] % 4 else 1) for layer in layers[:-1])

"""Pruning: channels are followed through the graph by one rule per operator, ranked in coupled groups, and cut out."""

import edgekit.compress.prune.recurrent
import edgekit.compress.prune.transposed  # noqa: F401  registers its rules, as does the one before

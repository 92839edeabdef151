"""Exact rewrites of a program: the same function, to float rounding, in fewer operators. One to a file.

The step ``rewrite`` does them on request (:mod:`edgekit.compress.rewrite.step`); exporters and other steps use some of them
by themselves.
"""

from __future__ import annotations

from edgekit.compress.rewrite.attention import attention_in_heads
from edgekit.compress.rewrite.batch_norm import fold_batch_norm
from edgekit.compress.rewrite.branches import merge_branches
from edgekit.compress.rewrite.edit import finish, replace_by_tensor
from edgekit.compress.rewrite.identities import remove_dead_code, remove_dropout, remove_identities
from edgekit.compress.rewrite.pads import circular_padding_to_concatenation
from edgekit.compress.rewrite.pooling import (
    adaptive_maximum_to_pool,
    average_inside,
    global_pool_to_mean,
    mean_over_space_in_two,
    strided_slice_to_pool,
)
from edgekit.compress.rewrite.powers import powers_to_products
from edgekit.compress.rewrite.repeats import repeats_to_concatenation
from edgekit.compress.rewrite.resizing import resizing_to_products
from edgekit.compress.rewrite.sequences import merge_sequences
from edgekit.compress.rewrite.siblings import merge_siblings
from edgekit.compress.rewrite.splits import hoist_over_splits, remove_splits_before_concatenation
from edgekit.compress.rewrite.transposed import crop_transposed_convolutions
from edgekit.compress.rewrite.weights import computed_weights_to_parameters, has_computed_weights

__all__ = [
    "adaptive_maximum_to_pool",
    "attention_in_heads",
    "average_inside",
    "circular_padding_to_concatenation",
    "computed_weights_to_parameters",
    "crop_transposed_convolutions",
    "finish",
    "fold_batch_norm",
    "global_pool_to_mean",
    "has_computed_weights",
    "hoist_over_splits",
    "mean_over_space_in_two",
    "merge_branches",
    "merge_sequences",
    "merge_siblings",
    "powers_to_products",
    "remove_dead_code",
    "remove_dropout",
    "remove_identities",
    "remove_splits_before_concatenation",
    "repeats_to_concatenation",
    "replace_by_tensor",
    "resizing_to_products",
    "strided_slice_to_pool",
]

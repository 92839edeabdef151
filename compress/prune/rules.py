"""One rule per operator: how channels flow through it, which of its parameters hold them, what changes when they go.

A rule takes the flow and a node and returns the labels of the node's value (None when no dimension holds channels that
could be cut). It may bind parameters (:meth:`Flow.bind`), make channels the same (:meth:`Flow.unite`), stop
(:meth:`Flow.barrier`) and append an edit of the node's constants. :func:`rule` registers one for a custom operator.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch.fx import Node

from edgekit.compress.prune.flow import Flow, Kept, Labels, Rule, Work
from edgekit.compress.prune.reshapes import bind_constant, block_of, dimension_to_cut
from edgekit.program import aten, shape_of
from edgekit.rules import into

RULES: dict[Any, Rule] = {}
rule = into(RULES)
"""Registers a rule for operators such as ``torch.ops.aten.relu.default`` or one of your own."""


def argument(node: Node, position: int, default: Any = None) -> Any:
    """A positional argument, or its default when the graph leaves it out."""
    return node.args[position] if len(node.args) > position else default


@rule(aten.conv2d.default, aten.conv1d.default, aten.conv3d.default)
def convolution(flow: Flow, node: Node) -> Labels | None:
    """Dense, grouped and depthwise convolution: weight (out, in / groups, …)."""
    source, weight, bias = node.args[0], node.args[1], argument(node, 2)
    groups = argument(node, 6, 1)
    labels = flow.labels(source)
    out_channels, in_per_group = weight.meta["val"].shape[:2]
    if labels is not None and labels.dim != 1:
        flow.freeze(labels)
        labels = None
    if groups == 1:
        if labels is not None:
            flow.bind(weight, 1, labels.ids, "in", node)
        ids = flow.fresh(out_channels)
    elif labels is None:
        return None  # the groups hang on channels that can't be cut, so neither can what they make
    elif in_per_group == 1:
        # Depthwise: each output channel belongs to one input channel, and so is the same channel.
        ids = np.repeat(labels.ids, out_channels // groups)

        def fewer_groups(kept: Kept, node: Node = node, ids: np.ndarray = labels.ids) -> None:
            node.update_arg(6, int(kept(ids).sum()))

        flow.edits.append(fewer_groups)
    else:
        # Every group must keep as many channels as the others, of those that it reads and of those that it makes.
        flow.balance(labels.ids, groups)
        flow.bind(weight, 1, labels.ids, "in", node, groups)
        ids = flow.fresh(out_channels)
        flow.balance(ids, groups)
    flow.bind(weight, 0, ids, "out", node)
    flow.bind(bias, 0, ids, "vector", node)
    return Labels(1, ids)


@rule(aten.linear.default)
def linear(flow: Flow, node: Node) -> Labels | None:
    """Fully connected: weight (out, in), channels in the last dimension."""
    source, weight, bias = node.args[0], node.args[1], argument(node, 2)
    last = len(shape_of(node)) - 1
    labels = flow.labels(source)
    if labels is not None and labels.dim == last:
        flow.bind(weight, 1, labels.ids, "in", node)
    else:
        flow.freeze(labels)
    ids = flow.fresh(weight.meta["val"].shape[0])
    flow.bind(weight, 0, ids, "out", node)
    flow.bind(bias, 0, ids, "vector", node)
    return Labels(last, ids)


@rule(aten.batch_norm.default, aten.instance_norm.default)
def batch_norm(flow: Flow, node: Node) -> Labels | None:
    """Per-channel scale, shift and running statistics."""
    labels = flow.labels(node.args[0])
    if labels is None or labels.dim != 1:
        flow.freeze(labels)
        return None
    for source in node.args[1:5]:
        flow.bind(source, 0, labels.ids, "vector", node)
    return labels


@rule(
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.leaky_relu.default,
    aten.elu.default, aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.hardsigmoid.default,
    aten.sigmoid.default, aten.tanh.default, aten.softplus.default, aten.mish.default, aten.abs.default,
    aten.neg.default, aten.exp.default, aten.sqrt.default, aten.pow.Tensor_Scalar, aten.dropout.default,
    aten.feature_dropout.default, aten.contiguous.default, aten.clone.default, aten.detach.default, aten.to.dtype,
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.avg_pool1d.default,
    aten.max_pool1d.default, aten.adaptive_max_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.vec, aten.add.Scalar, aten.mul.Scalar, aten.div.Scalar,
)  # fmt: skip
def keeps_channels(flow: Flow, node: Node) -> Labels | None:
    """Works on each channel by itself: element by element, or over space."""
    labels = flow.labels(node.args[0])
    if labels is not None and len(shape_of(node)) == 4 and labels.dim != 1 and "pool" in str(node.target):
        flow.freeze(labels)
        return None
    return labels


@rule(
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
)  # fmt: skip
def element_wise(flow: Flow, node: Node) -> Labels | None:
    """Two tensors meet, with broadcasting: their channels become the same."""
    rank = len(shape_of(node))
    sources = [source for source in node.args[:2] if isinstance(source, Node)]
    known = [(s, flow.labels(s)) for s in sources if flow.labels(s) is not None]
    if not known:
        return None
    first, labels = max(known, key=lambda pair: len(pair[1].ids))
    dim = labels.dim + rank - len(shape_of(first))
    for source in sources:
        if source is first:
            continue
        own_dim = dim - (rank - len(shape_of(source)))
        size = shape_of(source)[own_dim] if own_dim >= 0 else 1
        other = flow.labels(source)
        if size == 1 and (other is None or len(other.ids) == 1):
            flow.freeze(other)
        elif other is not None and other.dim == own_dim and len(other.ids) == len(labels.ids):
            flow.unite(labels.ids, other.ids)
        elif other is not None or not bind_constant(flow, source, Labels(own_dim, labels.ids), node):
            flow.freeze([labels, other])
    return Labels(dim, labels.ids)


@rule(aten.cat.default)
def concatenation(flow: Flow, node: Node) -> Labels | None:
    """Channels of the parts stand one after the other; along any other dimension they are the same, as a class token's."""
    parts = list(node.args[0])
    rank = len(shape_of(node))
    dim = argument(node, 1, 0) % rank
    known = [flow.labels(part) for part in parts]
    if all(labels is None for labels in known):
        return None
    if all(labels is None or labels.dim == dim for labels in known):
        ids = []
        for part, labels in zip(parts, known, strict=True):
            if labels is None:
                labels = Labels(dim, flow.fresh(shape_of(part)[dim]))
                flow.freeze(labels)
            ids.append(labels.ids)
        return Labels(dim, np.concatenate(ids))
    present = [labels for labels in known if labels is not None]
    others = [part for part, labels in zip(parts, known, strict=True) if labels is None]
    if len({labels.dim for labels in present}) == 1 and all(bind_constant(flow, o, present[0], node) for o in others):
        for labels in present[1:]:
            flow.unite(present[0].ids, labels.ids)
        return present[0]
    flow.freeze(present)
    return None


@rule(aten.pad.default, aten.constant_pad_nd.default)
def padding(flow: Flow, node: Node) -> Labels | None:
    """Padding of space keeps channels; padding of channels adds some that are made of zeros and cost nothing to cut."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    pads = list(node.args[1])
    position = 2 * (len(shape_of(node)) - 1 - labels.dim)  # pads count from the last dimension
    if position >= len(pads) or pads[position : position + 2] == [0, 0]:
        return labels
    mode = argument(node, 2, "constant") if node.target is aten.pad.default else "constant"
    if mode != "constant" or min(pads[position : position + 2]) < 0:
        flow.freeze(labels)
        return None
    left, right = flow.fresh(pads[position]), flow.fresh(pads[position + 1])

    def shorter_pads(kept: Kept) -> None:
        now = list(node.args[1])
        now[position : position + 2] = [int(kept(left).sum()), int(kept(right).sum())]
        node.update_arg(1, now)

    flow.edits.append(shorter_pads)
    return Labels(labels.dim, np.concatenate([left, labels.ids, right]))


@rule(aten.slice.Tensor)
def slicing(flow: Flow, node: Node) -> Labels | None:
    """A slice of channels takes a part of them; a slice of space keeps all."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    rank = len(shape_of(node))
    if argument(node, 1, 0) % rank != labels.dim:
        return labels
    count = len(labels.ids)
    start, end, step = slice(argument(node, 2), argument(node, 3), argument(node, 4, 1)).indices(count)
    if step != 1:
        flow.freeze(labels)
        return None
    before, taken = labels.ids[:start], labels.ids[start:end]

    def moved(kept: Kept) -> None:
        first = int(kept(before).sum())
        for position, value in ((1, labels.dim), (2, first), (3, first + int(kept(taken).sum()))):
            node.args = (*node.args[:position], value, *node.args[position + 1 :])

    flow.edits.append(moved)
    return Labels(labels.dim, taken)


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def splitting(flow: Flow, node: Node) -> list[Labels | None] | None:
    """Parts of the channels, with sizes that follow what is cut."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    parts = node.meta["val"]
    dim = argument(node, 2, 0) % len(shape_of(node.args[0]))
    if dim != labels.dim:
        return [labels] * len(parts)
    sizes = [int(part.shape[dim]) for part in parts]
    pieces = np.split(labels.ids, np.cumsum(sizes)[:-1])

    def resized(kept: Kept) -> None:
        node.target = aten.split_with_sizes.default
        node.args = (node.args[0], [int(kept(piece).sum()) for piece in pieces], dim)

    flow.edits.append(resized)
    return [Labels(dim, piece) for piece in pieces]


@rule(operator.getitem)
def item(flow: Flow, node: Node) -> Labels | None:
    """One of an operator's several results."""
    labels = flow.labels(node.args[0])
    return labels[node.args[1]] if isinstance(labels, list) else None


@rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default)
def reduction(flow: Flow, node: Node) -> Labels | None:
    """Over space, channels stay; over channels, they can't be told apart any more."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    rank = len(shape_of(node.args[0]))
    dims = {d % rank for d in (node.args[1] or range(rank))}
    if labels.dim in dims:
        flow.barrier(node, "A mean over channels mixes them; they stay whole.")
        return None
    keep = argument(node, 2, False)
    return labels if keep else Labels(labels.dim - sum(d < labels.dim for d in dims), labels.ids)


@rule(aten.permute.default)
def permutation(flow: Flow, node: Node) -> Labels | None:
    """Dimensions change places."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    order = [d % len(node.args[1]) for d in node.args[1]]
    return Labels(order.index(labels.dim), labels.ids)


@rule(aten.transpose.int)
def transposition(flow: Flow, node: Node) -> Labels | None:
    """Two dimensions change places."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    rank = len(shape_of(node))
    a, b = node.args[1] % rank, node.args[2] % rank
    return Labels({a: b, b: a}.get(labels.dim, labels.dim), labels.ids)


@rule(aten.unsqueeze.default)
def unsqueezing(flow: Flow, node: Node) -> Labels | None:
    """A dimension of size 1 more."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    dim = node.args[1] % len(shape_of(node))
    return Labels(labels.dim + (dim <= labels.dim), labels.ids)


@rule(
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze.default, aten.unflatten.int, aten._unsafe_view.default,
)  # fmt: skip
def reshaping(flow: Flow, node: Node) -> Labels | None:
    """Dimensions flow together (flatten: each channel becomes a run of positions) or apart (channel shuffle)."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    block = block_of(labels.dim, shape_of(node.args[0]), shape_of(node))
    if block is None:
        flow.barrier(node, "Channels can't be followed through this reshape; keep the channel dimension apart in it.")
        return None
    before, after = block
    sizes_before = [shape_of(node.args[0])[d] for d in before]
    sizes_after = [shape_of(node)[d] for d in after]
    spread = labels.ids.reshape([-1 if d == labels.dim else 1 for d in before])
    flat = np.broadcast_to(spread, sizes_before).reshape(-1)
    if len(after) == 1:
        dim, ids = after[0], flat
    else:
        dim, ids = dimension_to_cut(flow, flat.reshape(sizes_after), after)
    if node.target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):

        def resized(kept: Kept) -> None:
            sizes = list(node.args[1])
            if isinstance(sizes[dim], int) and sizes[dim] != -1:
                sizes[dim] = int(kept(ids).sum())
                node.update_arg(1, sizes)

        flow.edits.append(resized)
    elif node.target is aten.unflatten.int:

        def unflattened(kept: Kept) -> None:
            sizes = list(node.args[2])
            sizes[dim - node.args[1] % len(shape_of(node.args[0]))] = int(kept(ids).sum())
            node.update_arg(2, sizes)

        flow.edits.append(unflattened)
    return Labels(dim, ids)


@rule(aten.pixel_shuffle.default)
def pixel_shuffling(flow: Flow, node: Node) -> Labels | None:
    """Each run of r² channels becomes one channel of r times the height and width: it is cut whole."""
    labels = flow.labels(node.args[0])
    if labels is None or labels.dim != 1:
        flow.freeze(labels)
        return None
    runs = labels.ids.reshape(-1, int(node.args[1]) ** 2)
    for column in runs.T[1:]:
        flow.unite(runs[:, 0], column)
    return Labels(1, runs[:, 0].copy())


@rule(aten.layer_norm.default)
def layer_norm(flow: Flow, node: Node) -> Labels | None:
    """Scale and shift by channel. Mean and variance are taken over the channels that are left."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    if len(node.args[1]) != 1 or labels.dim != len(shape_of(node)) - 1:
        flow.barrier(node, "Only a norm over the channels alone, in the last dimension, can lose some of them.")
        return None
    for source in (argument(node, 2), argument(node, 3)):
        flow.bind(source, 0, labels.ids, "vector", node)

    def shorter(kept: Kept) -> None:
        node.update_arg(1, [int(kept(labels.ids).sum())])

    flow.edits.append(shorter)
    return labels


@rule(aten.softmax.int, aten._softmax.default)
def softmax(flow: Flow, node: Node) -> Labels | None:
    """Along another dimension than the channels, it works on each by itself."""
    labels = flow.labels(node.args[0])
    if labels is not None and node.args[1] % len(shape_of(node)) == labels.dim:
        flow.barrier(node, "A softmax over channels sees all of them; they stay whole.")
        return None
    return labels


@rule(aten.select.int)
def selection(flow: Flow, node: Node) -> Labels | None:
    """One position of another dimension keeps all channels."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    dim = node.args[1] % len(shape_of(node.args[0]))
    if dim == labels.dim:
        flow.barrier(node, "One channel is picked out by its place; they stay whole.")
        return None
    return Labels(labels.dim - (dim < labels.dim), labels.ids)


@rule(aten.unbind.int)
def unbinding(flow: Flow, node: Node) -> list[Labels | None] | None:
    """Every position of another dimension keeps all channels."""
    labels = flow.labels(node.args[0])
    if labels is None:
        return None
    dim = argument(node, 1, 0) % len(shape_of(node.args[0]))
    if dim == labels.dim:
        flow.barrier(node, "Channels are taken apart, each by its place; they stay whole.")
        return None
    return [Labels(labels.dim - (dim < labels.dim), labels.ids)] * len(node.meta["val"])


@rule(aten.matmul.default, aten.bmm.default)
def product(flow: Flow, node: Node) -> Labels | None:
    """Two tensors multiplied, as in attention: what is summed over goes from both, what is not stays with the result."""
    rank = len(shape_of(node))
    out: list[Labels] = []
    summed: list[Labels | None] = []
    for source, contracted in ((node.args[0], -1), (node.args[1], -2)):
        labels, own_rank = flow.labels(source), len(shape_of(source))
        if labels is not None and labels.dim == own_rank + contracted:
            summed.append(labels)
            continue
        summed.append(None)
        if labels is not None:
            out.append(Labels(labels.dim + rank - own_rank, labels.ids))
    if summed[0] is not None and summed[1] is not None:
        flow.unite(summed[0].ids, summed[1].ids)
    else:
        flow.freeze(summed)
    dims = [summed[0], *{labels.dim: labels for labels in out}.values()]
    flow.work += [Work(node.name, i, labels.ids) for i, labels in enumerate(dims) if labels is not None]
    if len(out) == 2 and out[0].dim == out[1].dim and len(out[0].ids) == len(out[1].ids):
        flow.unite(out[0].ids, out[1].ids)
    elif len(out) == 2:
        flow.freeze(out)
        return None
    return out[0] if out else None


@rule(aten.scaled_dot_product_attention.default)
def attention(flow: Flow, node: Node) -> Labels | None:
    """Channels of queries and keys go together, those of values stay with the result; the scale is that of before."""
    query, key, value = (flow.labels(source) for source in node.args[:3])
    rank = len(shape_of(node))
    if query is not None and key is not None and query.dim == key.dim == rank - 1:
        flow.unite(query.ids, key.ids)
        flow.work.append(Work(f"{node.name}.keys", 0, query.ids))
        width = shape_of(node.args[0])[-1]

        def same_scale(kept: Kept) -> None:
            node.kwargs = {"scale": width**-0.5, **node.kwargs}

        flow.edits.append(same_scale)
    else:
        flow.freeze([query, key])
    if value is not None and value.dim != rank - 1:
        flow.freeze(value)
        return None
    if value is not None:
        flow.work.append(Work(f"{node.name}.values", 0, value.ids))
    return value


@rule(aten.sym_size.int)
def size_of(flow: Flow, node: Node) -> None:
    """The batch size, which no cut changes."""

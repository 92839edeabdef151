"""What pnnx writes wrong into ncnn's files, or not at all, mended there from what it knew (pnnx 1.0.20261020).

Each is told apart from what is right, so a pnnx that has learned it is left alone; the proof looks at all of them.
"""

from __future__ import annotations

import re

from edgekit.export.ncnn_model import Layer

# Parameters of ncnn's Reduction, and its kinds of it that pnnx leaves in ONNX's words.
KIND, ALL, AXES, KEEPS, NEW_FORM = 0, 1, -23303, 4, 5
_EXTREMA = {"ReduceMax": 4, "ReduceMin": 5}
_REDUCTIONS = ("torch.mean", "torch.sum", "torch.prod", "torch.logsumexp", "torch.norm")


def mend(layers: list[Layer], known: str) -> bool:
    """Mends the layers of a ``.param`` file, in place.

    Args:
        layers: As pnnx wrote them.
        known: Its own form of the network (``.pnnx.param``), from which it wrote them.

    Returns:
        Whether anything had to be.
    """
    operators = [line for line in known.splitlines() if len(line.split()) > 3]
    # All three are called: each mends another thing.
    return any([states_as_rows(layers), one_dimension(layers, operators), extrema(layers, operators)])


def states_as_rows(layers: list[Layer]) -> bool:
    """Makes matrices of the initial states of recurrent layers.

    pnnx writes (directions, 1, width) as channels, which begin at multiples of 16 bytes; ncnn reads rows that follow each
    other. Of widths that 4 does not divide, the second direction began with memory that was never written, so that some
    loads of a file gave wrong numbers and others did not.
    """
    makers = {output: layer for layer in layers for output in layer.outputs}
    changed = False
    for layer in layers:
        for name in layer.inputs[1:] if layer.type in ("LSTM", "GRU", "RNN") else ():
            source = makers[name]
            while source.type == "Split":
                source = makers[source.inputs[0]]
            if source.type == "MemoryData" and source.integer(1) == 1 and source.integer(2) > 1:
                source.params[1] = source.params.pop(2)
                changed = True
    return changed


def one_dimension(layers: list[Layer], operators: list[str]) -> bool:
    """Gives means, sums and the like over one dimension that dimension: pnnx writes those of several alone.

    Without it ncnn takes nothing together. Both files have these operators in the same order.
    """
    written = [layer for layer in layers if layer.type == "Reduction"]
    meant = [line for line in operators if line.split()[0] in _REDUCTIONS]
    kinds = [line.split()[0].removeprefix("torch.") for line in meant]
    if [layer.name.rsplit("_", 1)[0] for layer in written] != kinds:
        return False  # made of other operators: the proof will tell what is wrong
    changed = False
    for layer, line in zip(written, meant, strict=True):
        dim = re.search(r" dim=(-?[1-9]\d*) ", line)
        if dim is not None and layer.params.get(AXES) == "0" and not layer.integer(ALL):
            layer.params[AXES] = _axes(dim.group(1))
            changed = True
    return changed


def extrema(layers: list[Layer], operators: list[str]) -> bool:
    """Writes largest and smallest values over dimensions as ncnn's reductions, which pnnx does not know."""
    lines = {line.split()[1]: line for line in operators}
    changed = False
    for layer in layers:
        if layer.type not in _EXTREMA:
            continue
        found = re.search(r" axes=\(?((?:-?[1-9],?)+)\)? ", lines.get(layer.name, ""))
        keeps = re.search(r" keepdims=(\d) ", lines.get(layer.name, ""))
        if found is not None:
            kind = _EXTREMA[layer.type]
            layer.type = "Reduction"
            layer.params = {KIND: str(kind), ALL: "0", AXES: _axes(found.group(1))}
            layer.params |= {KEEPS: keeps.group(1) if keeps else "1", NEW_FORM: "1"}
            changed = True
    return changed


def _axes(dims: str) -> str:
    """ncnn's form of dimensions: their number first, and without the batch's."""
    axes = [int(dim) - (int(dim) > 0) for dim in dims.split(",")]
    return ",".join(map(str, [len(axes), *axes]))

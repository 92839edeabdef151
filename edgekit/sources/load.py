"""``edgekit.load``: from what a user can name to a Bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from edgekit import program as programs
from edgekit.bundle import Bundle
from edgekit.data.preprocessing import Preprocessing
from edgekit.errors import SourceError, UsageError
from edgekit.files import sha256_file
from edgekit.pt2 import load_pt2
from edgekit.sources.factory import build_from_factory
from edgekit.sources.weights import load_weights_into


def load(
    model: str | Path | torch.nn.Module,
    *,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    preprocessing: dict[str, Any] | None = None,
    labels: Sequence[str] | None = None,
) -> Bundle:
    """Loads a trained model and exports it once, with a free batch dimension.

    Args:
        model: A bundle folder, ``zoo:NAME``, ``package.module:factory``, ``path/to/file.py:factory``, ``FILE.pt2``,
            ``FILE.onnx``, or, in Python, the network itself.
        weights: For a zoo network or a factory: a safetensors file, or a state dict that loads with
            ``weights_only=True``.
        input_shape: Shape of one input without the batch, such as ``(3, 32, 32)``; taken from the zoo or the program
            where they know it.
        preprocessing: Fields of :class:`~edgekit.data.preprocessing.Preprocessing` to set over the model's own.
        labels: Class names in the order of the outputs.

    Raises:
        UsageError: If the reference can't be understood.
        SourceError: If the model can't be loaded or exported.
        BundleError: If a bundle folder is damaged.

    Example:
        >>> import edgekit
        >>> edgekit.load("zoo:digits-cnn").input_shape
        (1, 8, 8)
    """
    if isinstance(model, torch.nn.Module):
        _refuse_weights(weights, f"the {type(model).__name__}")
        return _with_overrides(_from_module(model, type(model).__name__, {}, input_shape), preprocessing, labels)
    text = str(model)
    if text.startswith("zoo:"):
        bundle = _from_zoo(text, weights)
    elif text.endswith(".pt2"):
        _refuse_weights(weights, text)
        bundle = _from_pt2(Path(text))
    elif text.endswith(".onnx"):
        _refuse_weights(weights, text)
        bundle = _from_onnx(Path(text), input_shape)
    elif Path(text).is_dir():
        _refuse_weights(weights, text)
        bundle = Bundle.load(text)
    elif ":" in text:
        bundle = _from_factory(text, weights, input_shape)
    else:
        known = "a bundle folder, zoo:NAME, package.module:factory, path/to/file.py:factory, FILE.pt2, or FILE.onnx"
        if text.endswith((".pt", ".pth", ".th", ".safetensors")):
            raise UsageError(
                f"{text} holds weights, not a network",
                "Give the network as MODEL, for example my_package.models:resnet20, and this file with --weights.",
            )
        problem = "does not exist" if not Path(text).exists() else "is no model that edgekit can load"
        raise UsageError(f"{text!r} {problem}", f"MODEL is one of: {known}.")
    return _with_overrides(bundle, preprocessing, labels)


def _refuse_weights(weights: str | Path | None, model: str) -> None:
    if weights is not None:
        raise UsageError(f"{model} has weights of its own, so --weights {weights} has no place", "Leave --weights out.")


def _from_zoo(reference: str, weights: str | Path | None) -> Bundle:
    from edgekit import zoo

    module, entry = zoo.build(reference.removeprefix("zoo:"))
    source: dict[str, Any] = {"reference": reference}
    if weights is not None:
        load_weights_into(module, Path(weights))
        source |= {"weights": Path(weights).name, "weights_sha256": sha256_file(Path(weights))}
    elif entry.weights is None:
        source["untrained"] = True
    shape = tuple(entry.input_shape)
    preprocessing = Preprocessing(**entry.preprocessing) if entry.preprocessing else None
    program = programs.export_program(module, shape, origin=reference)
    return Bundle(program, shape, preprocessing, tuple(entry.labels or ()), source)


def _from_factory(reference: str, weights: str | Path | None, input_shape: Sequence[int] | None) -> Bundle:
    module = build_from_factory(reference)
    source: dict[str, Any] = {}
    if weights is not None:
        load_weights_into(module, Path(weights))
        source = {"weights": Path(weights).name, "weights_sha256": sha256_file(Path(weights))}
    return _from_module(module, reference, source, input_shape)


def _from_module(
    module: torch.nn.Module, reference: str, source: dict[str, Any], input_shape: Sequence[int] | None
) -> Bundle:
    known: Any = input_shape or getattr(module, "input_shape", ())
    shape = tuple(known)
    if not shape:
        raise UsageError(
            f"the input shape of {reference} is not known",
            "Set --input-shape, for example --input-shape 3,224,224 (channels, height, width).",
        )
    training = module.training
    program = _with_plain_weights(programs.export_program(module, shape, origin=reference), shape, reference)
    module.train(training)
    return Bundle(program, shape, source={"reference": reference, **source})


def _from_pt2(path: Path) -> Bundle:
    program = load_pt2(path)
    module = programs.trainable(program)
    shape = programs.shape_of(programs.input_node(module))
    programs.output_node(module)
    if len(shape) < 2 or any(size < 1 for size in shape[1:]):
        raise SourceError(f"{path} takes inputs of shape {shape}; only the batch may be free", "Export it again so.")
    if shape[0] != -1:
        raise SourceError(
            f"{path} was exported for a fixed batch of {shape[0]}",
            "Export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},): calibration and evaluation need batches.",
        )
    _refuse_decomposed(module, path)
    # Exported again: it may come from another IR, with in-place operators or a training flag set.
    program = _with_plain_weights(programs.export_program(module, shape[1:], origin=str(path)), shape[1:], str(path))
    return Bundle(program, shape[1:], source={"reference": path.name, "sha256": sha256_file(path)})


def _with_plain_weights(program: ExportedProgram, shape: tuple[int, ...], origin: str) -> ExportedProgram:
    """A weight that is normalized (``weight_norm``, ``spectral_norm``) in each inference is so here, once."""
    from edgekit.compress.rewrite import computed_weights_to_parameters, has_computed_weights

    if not has_computed_weights(program.graph):
        return program
    module = programs.trainable(program)
    return programs.export_program(module, shape, origin=origin) if computed_weights_to_parameters(module) else program


# What layers are decomposed into; no network is written with these.
_DECOMPOSED = {
    getattr(torch.ops.aten, name).default
    for name in (
        "convolution", "native_batch_norm", "_native_batch_norm_legit_no_training", "native_layer_norm",
        "native_group_norm", "_adaptive_avg_pool2d",
    )
}  # fmt: skip


def _refuse_decomposed(module: torch.fx.GraphModule, path: Path) -> None:
    """Core ATen has other operators for layers: nothing would be found there to compress, and nobody told."""
    for node in module.graph.nodes:
        if node.target in _DECOMPOSED:
            raise SourceError(
                f"{path} was decomposed to core ATen (it holds {node.target}), which edgekit does not compress",
                "Save what torch.export.export gives, without run_decompositions() or to_edge().",
            )


def _from_onnx(path: Path, input_shape: Sequence[int] | None) -> Bundle:
    from edgekit.sources.onnx import load_onnx, prove

    network, shape = load_onnx(path, input_shape)
    program = programs.export_program(network, shape, origin=str(path))
    bundle = Bundle(program, shape, source={"reference": path.name, "sha256": sha256_file(path)})
    difference = prove(bundle.module(), path, shape)
    return replace(bundle, source={**bundle.source, "difference_from_onnxruntime": difference})


def _with_overrides(bundle: Bundle, preprocessing: dict[str, Any] | None, labels: Sequence[str] | None) -> Bundle:
    if labels is not None:
        bundle = replace(bundle, labels=tuple(labels))
    given = {key: value for key, value in (preprocessing or {}).items() if value is not None}
    if not given and (bundle.preprocessing is not None or len(bundle.input_shape) != 3):
        return bundle
    channels, height, width = bundle.input_shape if len(bundle.input_shape) == 3 else (0, 0, 0)
    if channels not in (1, 3):
        return bundle
    base: dict[str, Any] = {"size": (height, width), "color": "gray" if channels == 1 else "rgb"}
    if bundle.preprocessing is not None:
        base = bundle.preprocessing.to_dict()
    try:
        made = Preprocessing.from_dict({**base, **given})
    except (TypeError, ValueError) as error:
        raise UsageError(f"the preprocessing does not fit the model: {error}") from error
    return replace(bundle, preprocessing=made)

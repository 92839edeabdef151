"""Edits of a ``.tflite`` flatbuffer that no converter does for us: metadata, and weights in fewer bits or without zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.export.lowering import pack_bits

METADATA_NAME = b"edgekit"
INT4_MAX = 7
# Weights are stored without their zeros where that takes so much of the bytes or less: it costs time on loading.
_WORTHWHILE = 0.8


def edit_model(
    content: bytes,
    *,
    metadata: str = "",
    half_weights: bool = False,
    narrow_weights: bool = False,
    wide_biases: bool = False,
    sparse_weights: bool = False,
) -> bytes:
    """Returns the model with edgekit's metadata in it, and its weights stored in fewer bits if asked.

    Args:
        content: A TFLite flatbuffer.
        metadata: JSON text, stored as a metadata buffer named ``edgekit``; none if empty.
        half_weights: Store float32 constants as float16 with a DEQUANTIZE before their use, as TFLite's "float16
            quantization" does; XNNPACK unpacks them when the file is loaded.
        narrow_weights: Store int8 weights whose values fit into 4 bits as int4.
        wide_biases: Store int32 biases as int64, which kernels for int16 activations want: with the int32 that litert-torch
            0.10 writes they compute something else without a word.
        sparse_weights: Store weights that are mostly zeros without them, with a DENSIFY before their use, where that is
            smaller.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if sparse_weights:
        for graph in model.subgraphs:
            _store_sparse(schema, model, graph)
    if half_weights:
        for graph in model.subgraphs:
            _store_half(schema, model, graph)
    if narrow_weights:
        for graph in model.subgraphs:
            _store_int4(schema, model, graph)
    if wide_biases:
        for graph in model.subgraphs:
            _widen_biases(schema, model, graph)
    if metadata:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(metadata.encode("utf-8"), np.uint8)
        model.buffers.append(buffer)
        entry = schema.MetadataT()
        entry.name, entry.buffer = METADATA_NAME, len(model.buffers) - 1
        kept = [item for item in model.metadata or [] if item.name != METADATA_NAME]
        model.metadata = [*kept, entry]
    builder = flatbuffers.Builder(len(content) + len(metadata) + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _store_half(schema: Any, model: Any, graph: Any) -> None:
    code = _operator_code(schema, model, schema.BuiltinOperator.DEQUANTIZE)
    inserted = []
    for index, tensor in enumerate(list(graph.tensors)):
        buffer = model.buffers[tensor.buffer]
        if tensor.type != schema.TensorType.FLOAT32 or buffer.data is None or len(buffer.data) < 8:
            continue
        half = schema.TensorT()
        half.shape, half.type, half.name = tensor.shape, schema.TensorType.FLOAT16, tensor.name + b"_half"
        values = np.frombuffer(bytes(bytearray(buffer.data)), np.float32).astype(np.float16)
        operator = _unpacked_from(schema, model, graph, index, half, values)
        operator.opcodeIndex = code
        operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = schema.DequantizeOptionsT()
        inserted.append(operator)
    graph.operators = inserted + list(graph.operators)
    _drop_unused_buffers(model)


def _unpacked_from(schema: Any, model: Any, graph: Any, index: int, stored: Any, values: np.ndarray) -> Any:
    """An operator, still without its kind, that makes a constant of the graph from a tensor which takes less room."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    stored.buffer = len(model.buffers) - 1
    graph.tensors.append(stored)
    graph.tensors[index].buffer = 0
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
    return operator


def _store_sparse(schema: Any, model: Any, graph: Any) -> None:
    """Rows of the last dimension are compressed (TFLite's ``SPARSE_CSR``); the dimensions before it stay dense."""
    types = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT8: np.int8}
    weighted = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED)
    inserted, done = [], set()
    for operator in list(graph.operators):
        index = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
        if model.operatorCodes[operator.opcodeIndex].builtinCode not in weighted or index in done:
            continue
        tensor = graph.tensors[index]
        stored = model.buffers[tensor.buffer].data
        if tensor.type not in types or stored is None:
            continue
        raw = bytes(bytearray(stored))
        rows = np.frombuffer(raw, types[tensor.type]).reshape(-1, int(tensor.shape[-1]))
        sparsity, values, size = _compressed_rows(schema, rows, [int(n) for n in tensor.shape])
        if size > _WORTHWHILE * len(raw):
            continue
        done.add(index)
        sparse = schema.TensorT()
        sparse.shape, sparse.type, sparse.name = tensor.shape, tensor.type, tensor.name + b"_sparse"
        sparse.sparsity, sparse.quantization = sparsity, tensor.quantization
        made = _unpacked_from(schema, model, graph, index, sparse, values)
        made.opcodeIndex = _operator_code(schema, model, schema.BuiltinOperator.DENSIFY, version=1)
        made.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
        made.builtinOptions = schema.DensifyOptionsT()
        inserted.append(made)
    graph.operators = inserted + list(graph.operators)
    if inserted:
        _separate_classifier(schema, model, graph)
    _drop_unused_buffers(model)


def _separate_classifier(schema: Any, model: Any, graph: Any) -> None:
    """Puts a RESHAPE between a mean over space and a dense linear layer: exact.

    XNNPACK counts that layer's weights with those of the 1×1 convolutions before the mean, and finds too few zeros
    (:mod:`edgekit.export.tflite_sparse`). The mean keeps its two dimensions of one, and the RESHAPE takes them away.
    """
    builtin = schema.BuiltinOperator

    def kind(operator: Any) -> int:
        return int(model.operatorCodes[operator.opcodeIndex].builtinCode)

    sparse = {int(op.outputs[0]) for op in graph.operators if kind(op) == builtin.DENSIFY}
    made = []
    for operator in graph.operators:
        made.append(operator)
        if kind(operator) != builtin.MEAN or operator.builtinOptions.keepDims:
            continue
        output = int(operator.outputs[0])
        readers = [op for op in graph.operators if output in op.inputs]
        dense = [kind(op) == builtin.FULLY_CONNECTED and int(op.inputs[1]) not in sparse for op in readers]
        if not readers or not all(dense) or _axes(model, graph, operator) != {1, 2}:
            continue
        was = graph.tensors[output]
        kept = schema.TensorT()
        # Over height and width of (batch, height, width, channels).
        kept.shape = np.array([was.shape[0], 1, 1, was.shape[-1]], np.int32)
        kept.type, kept.name, kept.quantization, kept.buffer = was.type, was.name + b"_kept", was.quantization, 0
        graph.tensors.append(kept)
        operator.outputs = [len(graph.tensors) - 1]
        operator.builtinOptions.keepDims = True
        made.append(_reshape(schema, model, graph, len(graph.tensors) - 1, output))
    graph.operators = made


def _axes(model: Any, graph: Any, operator: Any) -> set[int]:
    """What a MEAN is taken over, counted from the front; nothing if that is not known or the tensor is no map."""
    rank = len(graph.tensors[int(operator.inputs[0])].shape)
    data = model.buffers[graph.tensors[int(operator.inputs[1])].buffer].data
    if rank != 4 or data is None:
        return set()
    return {int(axis) % rank for axis in np.frombuffer(bytes(bytearray(data)), np.int32)}


def _reshape(schema: Any, model: Any, graph: Any, source: int, target: int) -> Any:
    """An operator that makes one tensor of another that has the same values in another shape."""
    shape = np.array(graph.tensors[target].shape, np.int32)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(shape.tobytes(), np.uint8)
    model.buffers.append(buffer)
    wanted = schema.TensorT()
    wanted.shape, wanted.type = np.array([len(shape)], np.int32), schema.TensorType.INT32
    wanted.name, wanted.buffer = graph.tensors[target].name + b"_shape", len(model.buffers) - 1
    graph.tensors.append(wanted)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [source, len(graph.tensors) - 1], [target]
    operator.opcodeIndex = _operator_code(schema, model, schema.BuiltinOperator.RESHAPE, version=1)
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = shape
    return operator


def _compressed_rows(schema: Any, rows: np.ndarray, shape: list[int]) -> tuple[Any, np.ndarray, int]:
    """The description of a tensor by the places of what is not zero, these values, and the bytes that both take."""
    at, places = np.nonzero(rows)
    ends = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=len(rows)))])
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder, sparsity.blockMap, sparsity.dimMetadata = list(range(len(shape))), [], []
    for size in shape[:-1]:
        dense = schema.DimensionMetadataT()
        dense.format, dense.denseSize = schema.DimensionType.DENSE, size
        sparsity.dimMetadata.append(dense)
    last = schema.DimensionMetadataT()
    last.format, last.denseSize = schema.DimensionType.SPARSE_CSR, 0
    last.arraySegmentsType, last.arraySegments, segments = _narrowest(schema, ends)
    last.arrayIndicesType, last.arrayIndices, indices = _narrowest(schema, places)
    sparsity.dimMetadata.append(last)
    values = rows[at, places]
    return sparsity, values, values.nbytes + segments + indices


def _narrowest(schema: Any, numbers: np.ndarray) -> tuple[Any, Any, int]:
    """Indices as a vector of the least width that holds them, and its bytes."""
    kinds = (("Uint8Vector", np.uint8), ("Uint16Vector", np.uint16), ("Int32Vector", np.int32))
    highest = int(numbers.max(initial=0))
    name, kind = next((name, kind) for name, kind in kinds if highest <= np.iinfo(kind).max)
    vector = getattr(schema, f"{name}T")()
    vector.values = numbers.astype(kind)
    return getattr(schema.SparseIndexVector, name), vector, vector.values.nbytes


def _store_int4(schema: Any, model: Any, graph: Any) -> None:
    # The versions since which each operator takes int4 weights.
    since = {
        schema.BuiltinOperator.CONV_2D: 7,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: 7,
        schema.BuiltinOperator.FULLY_CONNECTED: 11,
    }
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode not in since:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        stored = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.INT8 or stored is None:
            continue
        values = np.frombuffer(bytes(bytearray(stored)), np.int8)
        if np.abs(values.astype(np.int16)).max(initial=0) > INT4_MAX:
            continue
        tensor.type = schema.TensorType.INT4
        model.buffers[tensor.buffer].data = pack_bits(values, 4)
        code.version = max(code.version, since[code.builtinCode])


def _widen_biases(schema: Any, model: Any, graph: Any) -> None:
    weighted = (
        schema.BuiltinOperator.CONV_2D,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D,
        schema.BuiltinOperator.FULLY_CONNECTED,
    )
    for operator in graph.operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode not in weighted or len(operator.inputs) < 3:
            continue
        tensor = graph.tensors[operator.inputs[2]] if operator.inputs[2] >= 0 else None
        if tensor is None or tensor.type != schema.TensorType.INT32:
            continue
        values = np.frombuffer(bytes(bytearray(model.buffers[tensor.buffer].data)), np.int32)
        # A buffer of its own: the old one may be shared.
        wide = schema.BufferT()
        wide.data = np.frombuffer(values.astype(np.int64).tobytes(), np.uint8)
        model.buffers.append(wide)
        tensor.type, tensor.buffer = schema.TensorType.INT64, len(model.buffers) - 1
    _drop_unused_buffers(model)


def _drop_unused_buffers(model: Any) -> None:
    used = {t.buffer for g in model.subgraphs for t in g.tensors} | {item.buffer for item in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def _operator_code(schema: Any, model: Any, builtin: int, version: int = 3) -> int:
    """The place of an operator among the model's; version 3 of DEQUANTIZE reads float16."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1

"""Other toolkits' quantizers, each by its documented defaults, on a model and calibration images that are given.

    python benches/peers.py TOOL MODEL CALIBRATION.npz OUTPUT

TOOL is ``edgekit`` (from a bundle folder to a bundle folder), ``onnxruntime`` (quantize_static, per channel), ``nncf``,
``nncf-mixed`` (preset MIXED, per-tensor activations: what its speed asks for on CPUs), ``ai-edge-quantizer``, or
``ncnn2int8``. NNCF wants an environment of its own, ``python -m venv peers && peers/bin/pip install nncf==3.4.0 onnx
onnxruntime torch==2.13.0``, and this file run by its Python. ncnn's own tools come neither with its wheel nor
from Debian: ``ncnn2int8`` here rebuilds, after their source (tools/quantize/ncnn2int8.cpp, 2026), which layers are int8 and
hand int8 on, for times alone. It is not their file: scales come of the largest values, not of the least divergence, and what
stays in float is float32, not float16.
The archive holds ``x``: float32, (n, C, H, W) for ONNX and (n, H, W, C) for TFLite. Prints JSON: seconds and peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NNCF_CI", "1")  # sends no usage statistics

import numpy as np


def main() -> None:
    """Quantizes one model by one tool."""
    tool, model, calibration, output = sys.argv[1:5]
    images = np.load(calibration)["x"]
    run = {
        "onnxruntime": onnxruntime,
        "nncf": nncf_default,
        "nncf-mixed": nncf_mixed,
        "ai-edge-quantizer": ai_edge_quantizer,
        "ncnn2int8": ncnn2int8,
        "edgekit": edgekit,
    }[tool]
    start = time.monotonic()
    run(model, images, output)
    seconds = time.monotonic() - start
    print(json.dumps({"tool": tool, "seconds": seconds, "peak_mib": _peak_mib()}))


def _peak_mib() -> float:
    """Of this program: unlike ru_maxrss, which begins at what the process was forked from."""
    with open("/proc/self/status", encoding="utf-8") as stream:
        return next(int(line.split()[1]) / 1024 for line in stream if line.startswith("VmHWM:"))


def edgekit(model: str, images: np.ndarray, output: str) -> None:
    """Ours, with its default settings."""
    import edgekit
    from edgekit.data.dataset import Dataset, Split

    few = Split(images[:16], np.zeros(16, np.int64))
    data = Dataset("calibration", (), Split(images, np.zeros(len(images), np.int64)), few, few)
    edgekit.compress(edgekit.load(model), f"quantize:images={len(images)}", data, output=output)


def onnxruntime(model: str, images: np.ndarray, output: str) -> None:
    """ONNX Runtime's own: pre-processing, then QDQ, int8 weights per channel, uint8 activations."""
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> Any:
            image = next(self._left, None)
            return None if image is None else {_input_name(model): image[None]}

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(model, prepared)
        quantize_static(
            prepared, output, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip


def nncf_default(model: str, images: np.ndarray, output: str) -> None:
    """NNCF's quantize with nothing set but the number of images."""
    _nncf(model, images, output)


def nncf_mixed(model: str, images: np.ndarray, output: str) -> None:
    """NNCF with the preset MIXED and activations per tensor."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    advanced = AdvancedQuantizationParameters(activations_quantization_params=QuantizationParameters(per_channel=False))
    _nncf(model, images, output, preset=nncf.QuantizationPreset.MIXED, advanced_parameters=advanced)


def _nncf(model: str, images: np.ndarray, output: str, **settings: Any) -> None:
    import nncf
    import onnx

    name = _input_name(model)
    dataset = nncf.Dataset(list(images), lambda image: {name: image[None]})
    onnx.save(nncf.quantize(onnx.load(model), dataset, subset_size=len(images), **settings), output)


def ai_edge_quantizer(model: str, images: np.ndarray, output: str) -> None:
    """Google's, with its static W8A8 recipe."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(model, recipe.static_wi8_ai8())
    signature, name = _signature(model)
    # A list: a generator would be spent by the time it is read.
    calibrated = made.calibrate({signature: [{name: image[None]} for image in images]})
    made.quantize(calibrated).export_model(output, overwrite=True)


def ncnn2int8(model: str, images: np.ndarray, output: str) -> None:
    """All convolutions and linear layers in int8; int8 between them where no other layer stands, ``Split`` aside."""
    from edgekit.export.ncnn_model import read_param, read_weights, write_param, write_weights

    source, target = Path(model), Path(output)
    layers = read_param(source)
    read_weights(layers, source.with_suffix(".bin"))
    convolutions = ("Convolution", "ConvolutionDepthWise")
    quantized = [layer for layer in layers if layer.type in (*convolutions, "InnerProduct")]
    largest = _largest_of(source, {layer.inputs[0] for layer in quantized}, images[:8])
    for layer in quantized:
        groups = layer.integer(7, 1) if layer.type == "ConvolutionDepthWise" else layer.integer(0)
        rows = layer.arrays[0].reshape(groups, -1)
        scales = 127 / np.maximum(np.abs(rows).max(1), 1e-12)
        layer.arrays[0] = np.round(rows * scales[:, None]).astype(np.int8).reshape(-1)
        layer.arrays += [scales.astype("<f4"), np.array([127 / largest[layer.inputs[0]]], "<f4")]
        layer.params[8] = "1" if layer.type == "ConvolutionDepthWise" else "2"
    for layer in quantized:
        readers = [reader for reader in layers if layer.outputs[0] in reader.inputs]
        if len(readers) == 1 and readers[0].type == "Split":
            readers = [reader for reader in layers if set(readers[0].outputs) & set(reader.inputs)]
        if layer.type in convolutions and readers and all(reader.type in convolutions for reader in readers):
            layer.params[8] = str(100 + layer.integer(8))
            layer.arrays.append(np.array([127 / largest[readers[0].inputs[0]]], "<f4"))
    write_param(layers, target)
    write_weights(layers, target.with_suffix(".bin"))
    target.with_suffix(".json").write_bytes(source.with_suffix(".json").read_bytes())


def _largest_of(param: Path, blobs: set[str], images: np.ndarray) -> dict[str, float]:
    """The largest absolute value of each blob over the images."""
    import ncnn

    net = ncnn.Net()
    net.opt.lightmode = False
    net.load_param(str(param))
    net.load_model(str(param.with_suffix(".bin")))
    found = dict.fromkeys(blobs, 1e-12)
    for image in images:
        image = np.ascontiguousarray(image)
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], ncnn.Mat(image))
        for blob in blobs:
            found[blob] = max(found[blob], float(np.abs(np.array(extractor.extract(blob)[1])).max()))
    return found


def _signature(model: str) -> tuple[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_path=model).get_signature_list()
    key = next(iter(signatures))
    return key, signatures[key]["inputs"][0]


def _input_name(model: str) -> str:
    import onnx

    return str(onnx.load(model).graph.input[0].name)


if __name__ == "__main__":
    main()

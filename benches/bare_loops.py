"""A runtime's own loop, without a line of edgekit: what its users write to time a file. Run as a program by harness.py.

    python benches/bare_loops.py onnxruntime|tflite|ncnn|torch|openvino FILE INPUT.npy THREADS RUNS SECONDS

Prints the milliseconds of each inference as JSON.
"""

import json
import sys
import time

import numpy as np


def onnxruntime_loop(path, x, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def tflite_loop(path, x, threads):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    if detail["quantization"][0]:
        x = np.round(x / detail["quantization"][0] + detail["quantization"][1]).astype(detail["dtype"])
    interpreter.set_tensor(detail["index"], x)
    return interpreter.invoke


def ncnn_loop(path, x, threads):
    import ncnn

    net = ncnn.Net()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    net.opt.num_threads = threads
    net.load_param(path)
    net.load_model(path.removesuffix(".param") + ".bin")
    mat = ncnn.Mat(x[0])
    first, last = net.input_names()[0], net.output_names()[0]

    def once():
        extractor = net.create_extractor()
        extractor.input(first, mat)
        return extractor.extract(last)

    return once


def torch_loop(path, x, threads):
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(f"{path}/program.pt2").module(check_guards=False)
    # An exported program looks its inputs over before each call, by hooks: its computing is without.
    module._forward_pre_hooks.clear()
    module._forward_pre_hooks_with_kwargs.clear()
    module.requires_grad_(False)
    tensor = torch.from_numpy(x)

    def once():
        with torch.inference_mode():
            return module(tensor)

    return once


def openvino_loop(path, x, threads):
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    return request.infer


LOOPS = {
    "onnxruntime": onnxruntime_loop,
    "tflite": tflite_loop,
    "ncnn": ncnn_loop,
    "torch": torch_loop,
    "openvino": openvino_loop,
}


def main():
    kind, path, source, threads, runs, seconds = sys.argv[1:]
    x = np.load(source)
    once = LOOPS[kind](path, x, int(threads))
    for _ in range(5):
        once()
    until = time.perf_counter() + 0.1
    while time.perf_counter() < until:
        once()
    samples = []
    until = time.perf_counter() + float(seconds)
    while len(samples) < int(runs) or time.perf_counter() < until:
        start = time.perf_counter_ns()
        once()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()

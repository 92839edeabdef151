"""Times of each layer of an ncnn network, whose wheel has no profiler: its blobs are asked for one after the other."""

from __future__ import annotations

import statistics
from typing import Any

from .profile import WARM_RUNS, Operator, Profile, distinct, timed
from .runtime import RunError

# Extractor::extract of type 1 hands a blob out as it is: still packed, still int8 or half precision.
_AS_IT_IS = 1


def profile(ncnn: Any, net: Any, source: str, mat: Any, whole: Any, runs: int) -> Profile:
    """Times each layer of a loaded network.

    An extractor in light mode keeps what is not read yet and computes no more than what is asked for, so asking for
    every layer's blob in the order of the file runs each layer once, in place where the whole inference does. The blobs
    come from a pool of ours: from the extractor's own, ``extract`` would hand out copies.

    Args:
        ncnn: The module.
        net: The ``ncnn.Net``.
        source: Name of the input blob.
        mat: The input.
        whole: Runs one inference as it is always run.
        runs: Profiled runs.
    """
    blobs = [blob.name for blob in net.blobs()]
    layers = [layer for layer in net.layers() if layer.bottoms and layer.tops]
    names = distinct([layer.name for layer in layers])
    asked = [blobs[layer.tops[0]] for layer in layers]
    blob_pool, workspace_pool = ncnn.PoolAllocator(), ncnn.PoolAllocator()
    taken: list[list[float]] = [[] for _ in layers]
    whole_ms, profiled, asking = [], [], []

    def ask(extractor: Any, blob: str) -> None:
        code = extractor.extract(blob, _AS_IT_IS)[0]
        if code != 0:
            raise RunError(f"ncnn failed at the blob {blob} with code {code}")

    def once() -> None:
        extractor = net.create_extractor()
        extractor.set_light_mode(True)
        extractor.set_blob_allocator(blob_pool)
        extractor.set_workspace_allocator(workspace_pool)
        extractor.input(source, mat)
        for samples, blob in zip(taken, asked, strict=True):
            samples.append(timed(lambda blob=blob: ask(extractor, blob)))  # type: ignore[misc]
        # A blob that is there already: nothing is computed, so this is what asking takes.
        asking.append(timed(lambda: ask(extractor, asked[-1])))

    for _ in range(WARM_RUNS + runs):
        whole_ms.append(timed(whole))
        profiled.append(timed(once))
    return Profile(
        operators=tuple(
            Operator(
                name=name,
                type=layer.type,
                inputs=tuple(blobs[index] for index in layer.bottoms),
                outputs=tuple(blobs[index] for index in layer.tops),
                samples_ms=tuple(samples[WARM_RUNS:]),
            )
            for name, layer, samples in zip(names, layers, taken, strict=True)
        ),
        whole_ms=tuple(whole_ms[WARM_RUNS:]),
        profiled_ms=tuple(profiled[WARM_RUNS:]),
        method="each layer's output asked for in turn, within one inference",
        overhead_ms=statistics.median(asking[WARM_RUNS:]),
    )

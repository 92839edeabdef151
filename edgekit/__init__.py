"""edgekit takes a trained model and turns it into files that run, small and fast, on phones and edge devices.

    import edgekit

    bundle = edgekit.load("zoo:digits-cnn")
    small = edgekit.compress(bundle, ["prune-channels:macs=0.5", "quantize"], "digits", output="small")
    files = edgekit.export(small, ["onnx", "tflite", "ncnn"])
    print(edgekit.bench([file.path for file in files]))

Every name is imported when it is first used, so ``import edgekit`` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.benchmark import bench
    from edgekit.bundle import Bundle
    from edgekit.compress.prune.module import prune
    from edgekit.compress.search.advise import advise
    from edgekit.data.references import load_data
    from edgekit.export.run import verify
    from edgekit.sources.load import load

# compress and export are the rooms themselves, which can be called.
_PLACES = {
    "Bundle": "edgekit.bundle:Bundle",
    "load": "edgekit.sources.load:load",
    "load_data": "edgekit.data.references:load_data",
    "compress": "edgekit.compress",
    "advise": "edgekit.compress.search.advise:advise",
    "prune": "edgekit.compress.prune.module:prune",
    "export": "edgekit.export",
    "verify": "edgekit.export.run:verify",
    "bench": "edgekit.benchmark:bench",
}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    # Here and not above: a worker, which measures, imports this package too.
    from edgekit.arithmetic import no_collections, prepare

    prepare()
    module, _, attribute = place.partition(":")
    with no_collections():
        loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


__all__ = ["Bundle", "advise", "bench", "compress", "export", "load", "load_data", "prune", "verify"]

"""Peak memory of calibration with 200 and with 20 000 images: it must not grow.

    python benches/calibration_memory.py [--shared ../shared/data]

ResNet-20 on CIFAR-10, each method in a process of its own, which holds the whole data set in both cases. What is told is the
peak resident memory of the process. Results go to benches/results/calibration_memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COUNTS = (200, 20_000)
METHODS = ("min-max", "percentile", "mse", "entropy")
RESULT = Path(__file__).parent / "results" / "calibration_memory.json"


def main() -> None:
    """Runs every method with every count and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_one(arguments.shared, arguments.one[0], int(arguments.one[1]))))
        return
    from edgekit.bundle import versions
    from edgekit.files import write_json

    rows: dict[str, Any] = {}
    for method in METHODS:
        for count in COUNTS:
            command = [sys.executable, __file__, "--shared", str(arguments.shared), "--one", method, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.setdefault(method, {})[str(count)] = found = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{method}, {count} images: {found['peak_mib']:.0f} MiB, {found['seconds']:.1f} s", flush=True)
    write_json(RESULT, {"rows": rows, "versions": versions()})


def _one(shared: Path, method: str, images: int) -> dict[str, float]:
    import edgekit

    data = edgekit.load_data(f"cifar10:{shared / 'sets' / 'cifar10_jpegq75_train50k.npz'}")
    bundle = edgekit.load("zoo:resnet20-cifar", weights=shared / "weights" / "resnet20_jpeg.safetensors")
    start = time.monotonic()
    edgekit.compress(bundle, f"quantize:calibration={method},images={images}", data)
    seconds = time.monotonic() - start
    # Unlike ru_maxrss, which begins at what the process was forked from.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
    return {"peak_mib": peak, "seconds": seconds}


if __name__ == "__main__":
    main()

"""How long ``edgekit --help`` takes: median of ten. Results go to benches/results/startup.json.

python benches/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from edgekit.files import write_json

RUNS = 10
RESULT = Path(__file__).parent / "results" / "startup.json"


def main() -> None:
    """Measures and writes the result."""
    command = [str(Path(sys.executable).parent / "edgekit"), "--help"]
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    write_json(RESULT, {"command": "edgekit --help", "median_s": statistics.median(seconds), "seconds": seconds})
    print(f"edgekit --help: median of {RUNS} {statistics.median(seconds):.3f} s")


if __name__ == "__main__":
    main()

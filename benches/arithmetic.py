"""What edgekit's settings of its own process bring: threads that sleep while they wait, memory that is kept.

    python benches/arithmetic.py [--images 32] [--steps 6] [--rounds 3]

Calibration of MobileNet V2 and training of ResNet-20 (random weights and images, as many threads as there are cores), each in
fresh processes, in turn with the settings and as libraries have it; on a machine that does nothing else, and beside a program
that keeps one core busy. Least seconds of the rounds. Results go to benches/results/arithmetic.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "arithmetic.json"
BUSY = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
started_by = os.getppid()
while os.getppid() == started_by:
    pass
"""


def main() -> None:
    """Measures and writes the result; with ``--alone`` one measurement, of this very process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", choices=("prepared", "as libraries have it"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(_alone(arguments.alone == "prepared", arguments.images, arguments.steps)))
        return
    # Not above: they load torch, which a process that is measured must not have done yet.
    from edgekit.bundle import versions
    from edgekit.files import write_json
    from edgekit.runtimes.facts import machine_facts

    rows: dict[str, dict[str, float]] = {}
    for place in ("idle", "one core busy"):
        # In a session of its own, as of another terminal: Linux shares its processors between sessions.
        busy = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) if place != "idle" else None
        try:
            for _ in range(arguments.rounds):
                for how in ("prepared", "as libraries have it"):
                    found = _in_a_process(how, arguments)
                    row = rows.setdefault(f"{place}, {how}", found)
                    row |= {key: min(row[key], value) for key, value in found.items()}
                    print(place, how, found, flush=True)
        finally:
            if busy is not None:
                busy.kill()
    write_json(
        RESULT,
        {
            "rows": rows,
            "images": arguments.images,
            "steps": arguments.steps,
            "target": machine_facts(),
            "versions": versions(),
        },
    )


def _in_a_process(how: str, arguments: argparse.Namespace) -> dict[str, float]:
    ours = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = [
        sys.executable,
        __file__,
        "--alone",
        how,
        "--images",
        str(arguments.images),
        "--steps",
        str(arguments.steps),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _alone(prepared: bool, images: int, steps: int) -> dict[str, float]:
    """Seconds of both kinds of work; what edgekit sets up is set up before torch is loaded, or not at all."""
    if prepared:
        from edgekit.arithmetic import prepare

        prepare()
    import numpy as np
    import torch

    from edgekit.compress.quantize.calibration.observe import observe_ranges
    from edgekit.compress.quantize.plan import make_plan
    from edgekit.compress.rewrite import fold_batch_norm
    from edgekit.program import set_training
    from edgekit.sources.load import load

    module = load("zoo:mobilenet-v2").module()
    fold_batch_norm(module)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, 3, 224, 224), dtype=np.float32)
    plan = make_plan(module)
    observe_ranges(module, plan, [x[:4]])
    start = time.monotonic()
    observe_ranges(module, plan, (x[i : i + 4] for i in range(0, images, 4)))
    calibration = time.monotonic() - start
    network = set_training(load("zoo:resnet20-cifar").module(), True)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    batch = torch.from_numpy(rng.standard_normal((128, 3, 32, 32), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, 10, 128))
    for step in range(steps + 2):
        if step == 2:
            start = time.monotonic()
        loss = torch.nn.functional.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {"calibration_s": calibration, "training_s": time.monotonic() - start}


if __name__ == "__main__":
    main()

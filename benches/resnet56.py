"""ResNet-56 on CIFAR-10 with 2.1, 2.5 and 3.3 times fewer MACs: cut and shortly fine-tuned, beside Torch-Pruning and NNCF.

    pip install --no-deps torch-pruning==1.6.0
    python benches/resnet56.py [--shared ../shared/data] [--work runs/resnet56] [--epochs 2] [--times 2.1 --times 3.3]
        [--distill 0.5] [--precision bfloat16] [--seed 1] [--importance lasso --rounds 1 --whole] [--refit 512] [--nncf PYTHON]

All get the same fine-tuning, data and seed, and may cut to any width, as accuracy is what is compared; runtimes like few of
these widths, and ``--multiple 4`` keeps ours on a grid. Torch-Pruning chooses by the norm of groups
(``GroupMagnitudeImportance``), all layers ranked together, in 400 small steps; ours by ``energy`` in 100, which comes to nearly
the same widths (at 2.5 times to the same network, to the bit), or by what ``--importance`` and ``--rounds`` say. Ours isn't
refitted unless ``--refit`` says so: that begins higher and ends lower, after epochs over many images. Torch-Pruning can't
follow the parameter-free shortcut (strided slice and padded channels), so it cuts inside of the blocks, as NNCF does and ours
without ``--whole``. ``--nncf`` takes NNCF in both of its rankings (``nncf_filters.py`` tells which, and how to get it).
With ``--distill`` all learn from the original besides, its soft targets being so large a share of the loss; such rows stand
beside those without, as do those of another ``--seed``. ``--times 1`` trains the original itself as long, uncut: what of a gain
is the training alone; cuts after it in the same command are told against it. Its last epoch is taken: most of the validation
images were among those that it was trained on before. Killed, the same command goes on.
Epochs are chosen on validation images; the best and the last are told. Figures are on the 5 000 test copies, paired with the
original's. Results go to benches/results/resnet56.json. The full run is ``--epochs 60 --learning-rate 0.05``; one that comes to
the original's accuracy in about an hour of one core for each cut is ``--ours-alone --epochs 14 --learning-rate 0.05
--distill 0.5 --precision bfloat16``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import networks
import nncf_filters
import prune_peers
from progress import log

import edgekit
from edgekit.bundle import Bundle, versions
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.evaluation import Evaluation, evaluate, paired_difference
from edgekit.files import write_json

RESULT = Path(__file__).parent / "results" / "resnet56.json"


def main() -> None:
    """Prunes with both, evaluates and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/resnet56"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--times", type=float, action="append")
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument("--distill", type=float, default=0.0)
    parser.add_argument(
        "--precision", default="float32", help="Of the training; bfloat16 is faster where the processor has it."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--importance", default="energy")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--whole", action="store_true", help="Cut what runs through the blocks, too.")
    parser.add_argument("--refit", type=int, default=0, help="Images to refit ours on after the cut.")
    parser.add_argument("--ours-alone", action="store_true")
    parser.add_argument(
        "--nncf", help="Python of an environment with NNCF 2.19 (nncf_filters.py); without it its rows are missing."
    )
    arguments = parser.parse_args()
    original, data = networks.cifar_resnet(arguments.shared, 56)
    reference = evaluate(original.module(), data.test, original.preprocessing)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    finetune = f"epochs={arguments.epochs},learning_rate={arguments.learning_rate:g}"
    kind = ""
    if arguments.distill:
        original.save(arguments.work / "original")
        finetune += f",distill=[teacher={arguments.work / 'original'},weight={arguments.distill:g}]"
        kind = " distilled"
    if arguments.precision != "float32":
        finetune += f",precision={arguments.precision}"
        kind += f" {arguments.precision}"
    if arguments.seed:
        kind += f" seed-{arguments.seed}"
    own = f"{kind} {arguments.importance}" + (f"-{arguments.rounds}" if arguments.rounds > 1 else "")
    own += "" if arguments.whole else " inside"
    own += " refitted" if arguments.refit else ""
    results: dict[str, Evaluation] = {}
    for times in arguments.times or (2.1, 2.5, 3.3):
        cut = f"macs={1 / times:.4f},importance={arguments.importance},rounds={arguments.rounds},between=0"
        cut += "" if arguments.whole else ",keep=[conv1,*.conv2]"
        cut += f",multiple={arguments.multiple},reconstruct={arguments.refit},epochs=0"
        jobs = {"edgekit": (original, [f"prune-channels:{cut}", f"finetune:{finetune}"])}
        if times == 1:
            # On images that it was trained on, its first epoch is its best: nothing to choose by.
            jobs = {"uncut": (original, [f"finetune:{finetune},keep=last"])}
        elif not arguments.ours_alone:
            weights = arguments.shared / "weights" / "resnet56_jpeg.safetensors"
            others = {"torch-pruning": prune_peers.torch_pruning(original, weights, 1 / times)}
            for ranking in nncf_filters.RANKINGS if arguments.nncf else ():
                others[f"nncf-{ranking}"] = prune_peers.nncf(original, weights, 1 / times, ranking, arguments.nncf)
            jobs |= {name: (bundle, [f"finetune:{finetune}"]) for name, bundle in others.items()}
        for name, (bundle, steps) in jobs.items():
            key = f"{name} {times:g} {arguments.epochs}{own if name == 'edgekit' else kind}"
            path = arguments.work / key.replace(" ", "-")
            # What an earlier run of the command has trained already is taken as it is.
            trained = (path / "bundle.json").is_file()
            small = (
                edgekit.load(path)
                if trained
                else edgekit.compress(bundle, steps, data, output=path, seed=arguments.seed, progress=log)
            )
            cut_only = edgekit.compress(bundle, steps[0], data, seed=arguments.seed) if len(steps) > 1 else bundle
            results[name] = evaluate(small.module(), data.test, original.preprocessing)
            row = _row(original, small, cut_only, steps, data, reference, results[name])
            if name == "edgekit":
                row["against"] = found["rows"].get(key, {}).get("against", {})
                if "uncut" in results:
                    row["against"]["uncut"] = paired_difference(results["uncut"], results["edgekit"])
            elif name != "uncut":
                ours = found["rows"][f"edgekit {times:g} {arguments.epochs}{own}"]
                ours["against"][name] = paired_difference(results[name], results["edgekit"])
            found["rows"][key] = row
            write_json(RESULT, {**found, "float_top1": reference.top1, "versions": versions()})


def _row(
    original: Bundle,
    small: Bundle,
    cut_only: Bundle,
    steps: list[str],
    data: Dataset,
    reference: Evaluation,
    result: Evaluation,
) -> dict[str, Any]:
    untrained = evaluate(cut_only.module(), data.test, original.preprocessing)
    difference, error = paired_difference(reference, result)
    was, now = cost_of(original.module()), cost_of(small.module())
    report = small.steps[-1]["report"]
    row = {
        "steps": [re.sub(r"teacher=[^,]*", "teacher=original", step) for step in steps],
        "macs_ratio": now.macs / was.macs,
        "parameters_ratio": now.parameters / was.parameters,
        "top1": result.top1,
        "drop": 0.0 - difference,
        "standard_error": error,
        "top1_before_training": untrained.top1,
        "best_validation_top1": report["best_validation_top1"],
        "last_validation_top1": report["last_validation_top1"],
        "history": report["history"],
    }
    print({key: row[key] for key in ("steps", "macs_ratio", "top1", "drop", "top1_before_training")}, flush=True)
    return row


if __name__ == "__main__":
    main()

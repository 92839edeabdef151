"""Trains the network that edgekit ships, ``zoo:digits-cnn``, and writes its weights.

    python benches/train_digits.py            # about two minutes on two cores

Deterministic. The epoch is chosen on the validation split; the test split is looked at once, at the end.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgekit.bundle import versions
from edgekit.data.preprocessing import Preprocessing
from edgekit.data.references import load_data
from edgekit.evaluation import evaluate
from edgekit.program import export_program, trainable
from edgekit.training import TrainingSettings, train
from edgekit.zoo import get
from edgekit.zoo.digits_cnn import DigitsCnn


def main() -> None:
    """Trains, tells, writes."""
    torch.manual_seed(0)
    entry = get("digits-cnn")
    preprocessing = Preprocessing(**entry.preprocessing)
    dataset = load_data("digits")
    module = trainable(export_program(DigitsCnn(), entry.input_shape))
    settings = TrainingSettings(epochs=40, batch_size=64, learning_rate=0.05, weight_decay=5e-4, augmentation="crop")
    result = train(module, dataset, preprocessing, settings, progress=_tell)
    test = evaluate(module, dataset.test, preprocessing)
    weights = Path(__file__).parent.parent / "edgekit" / "zoo" / str(entry.weights)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, weights)
    figures = {
        "validation_top1": result.best_validation_top1,
        "best_epoch": result.best_epoch,
        "test_top1": test.top1,
        "test_images": len(test.labels),
        "bytes": weights.stat().st_size,
        "versions": versions(),
    }
    print(json.dumps(figures, indent=2))
    (Path(__file__).parent / "results").mkdir(exist_ok=True)
    (Path(__file__).parent / "results" / "train_digits.json").write_text(json.dumps(figures, indent=2) + "\n")


def _tell(done: int, total: int, text: str) -> None:
    if "validation" in text:
        print(f"{done}/{total} {text}", flush=True)


if __name__ == "__main__":
    main()

"""The Bundle: a program together with all that is needed to use it honestly.

On disk a bundle is a folder, written under a temporary name and renamed when whole:

    bundle.json    schema version, source, signature, preprocessing, labels, data, the steps applied, metrics, versions, SHA-256
    program.pt2    the torch.export program with its weights: their only copy, and no pickle
    samples.npz    some real inputs and the outputs expected for them, so that any device can check itself
    exports/       the exported files, each with its NAME.parity.json
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.export import ExportedProgram
from torch.fx import GraphModule

import edgekit.program as programs
from edgekit.data.preprocessing import Preprocessing
from edgekit.errors import BundleError, DataError
from edgekit.files import atomic_folder, sha256_file
from edgekit.lift import lifted
from edgekit.pt2 import load_pt2, save_pt2
from edgekit.simulation import simulator

if TYPE_CHECKING:
    from edgekit.data.dataset import Dataset

SCHEMA = 1
_FILES = ("program.pt2", "samples.npz")
_VERSIONS_OF = ("edgekit", "torch", "numpy", "onnx", "onnxruntime", "ai-edge-litert", "litert-torch", "ncnn", "pnnx")


@dataclass(frozen=True)
class Samples:
    """Real inputs with the outputs that the bundle's program gives for them.

    Attributes:
        inputs: float32, shape (n, C, H, W): preprocessed, as the network takes them.
        outputs: float32, shape (n, classes).
        labels: int64, shape (n,).
    """

    inputs: np.ndarray
    outputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A trained network as edgekit handles it.

    Attributes:
        program: The torch.export program, batch free.
        input_shape: Shape of one input without the batch.
        preprocessing: How an image becomes that input; None when unknown.
        labels: Class names in the order of the outputs; empty when unknown.
        source: Where the network came from (the reference as typed, the weights and their SHA-256).
        data: The data reference that the steps used; empty when none.
        steps: What was done: for each step its name, settings and report.
        metrics: Measurements by name, each with the data it was measured on.
        samples: Real samples with expected outputs; None before any data was seen.
        path: The folder it was loaded from, if any.
        written: A file that holds this very program already, with its SHA-256; saving copies it while it still does.
    """

    program: ExportedProgram
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    steps: tuple[dict[str, Any], ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    samples: Samples | None = None
    path: Path | None = None
    written: tuple[Path, str] | None = None

    def module(self) -> GraphModule:
        """A fresh trainable copy of the program (see :func:`edgekit.program.trainable`)."""
        return programs.trainable(self.program)

    def with_module(self, module: GraphModule, *, shapes_kept: bool = False) -> Bundle:
        """This bundle with another program in place of its own; samples are forgotten, for they no longer hold.

        Args:
            module: Made by :meth:`module` and edited since.
            shapes_kept: Every node has its value, as operators were put in without changing a shape: nothing is traced anew.
        """
        if shapes_kept:
            program = lifted(module, self.program)
        else:
            program = programs.export_program(module, self.input_shape, origin="the edited program")
        return replace(self, program=program, samples=None, path=None, written=None)

    @property
    def precision(self) -> str:
        """``int8`` when the program holds quantized weights, else ``float32``."""
        nodes = self.program.graph.nodes
        return (
            "int8" if any(n.target is programs.quantized.dequantize_per_channel.default for n in nodes) else "float32"
        )

    @functools.cached_property
    def weights(self) -> str:
        """How weights are held: ``float32``, ``int8`` (any width up to it), ``codes`` into a table of values, or ``sparse``."""
        # By the graph: a network may have a buffer of any name, an attention mask for example.
        if not any(node.target in programs.DECODES for node in self.program.graph.nodes):
            return self.precision
        module = self.module()
        for form, kind in ((programs.codebook_of, "codes"), (programs.sparse_of, "sparse")):
            if any(form(node) is not None for node in module.graph.nodes):
                return kind
        return self.precision

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the program: its graph and its weights. Exports carry it, to tell whose they are."""
        digest = hashlib.sha256(self.program.graph_module.code.encode())
        for name, tensor in sorted(self.program.state_dict.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def few_classes(self) -> bool:
        """Whether classes were left out on purpose: data sets are then seen without them."""
        return any(step["step"] == "keep-classes" for step in self.steps)

    @property
    def name(self) -> str:
        """What to call the bundle in tables."""
        return self.path.name if self.path else str(self.source.get("reference", "model"))

    def with_samples(self, inputs: np.ndarray, labels: np.ndarray) -> Bundle:
        """This bundle with these inputs as samples; the expected outputs are computed by its own program."""
        import torch

        with torch.no_grad():
            outputs = simulator(self.module())(torch.from_numpy(inputs)).numpy()
        return replace(self, samples=Samples(inputs.astype(np.float32), outputs, labels.astype(np.int64)))

    def save(self, path: str | Path) -> Bundle:
        """Writes the bundle folder at once or not at all, and returns the bundle as found there.

        Exports of an older bundle in the same place are not kept: they belong to other weights.
        """
        path = Path(path)
        with atomic_folder(path) as folder:
            if not self._copied(folder / "program.pt2"):
                save_pt2(self.program, folder / "program.pt2")
            if self.samples is not None:
                np.savez(folder / "samples.npz", **vars(self.samples))
                _fix_times(folder / "samples.npz")
            hashes = {name: sha256_file(folder / name) for name in _FILES if (folder / name).exists()}
            content = {"schema": SCHEMA, **self.describe(), "versions": versions(), "sha256": hashes}
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / "bundle.json").write_text(text + "\n", encoding="utf-8")
        return replace(self, path=path, written=(path / "program.pt2", hashes["program.pt2"]))

    def _copied(self, target: Path) -> bool:
        """Copies the program's file instead of writing it anew, if the one that is known is still there and whole."""
        if self.written is None or not self.written[0].is_file():
            return False
        shutil.copyfile(self.written[0], target)
        return sha256_file(target) == self.written[1]

    def describe(self) -> dict[str, Any]:
        """The bundle without its tensors, as JSON values."""
        return {
            "source": self.source,
            "precision": self.precision,
            "input": {"shape": ["batch", *self.input_shape], "dtype": "float32"},
            "output": {"shape": ["batch", *self._output_shape()], "dtype": "float32"},
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "labels": list(self.labels),
            "data": self.data,
            "steps": list(self.steps),
            "metrics": self.metrics,
        }

    def view_of(self, dataset: Dataset) -> Dataset:
        """A data set as this network sees it: with its own classes alone, where others were left out on purpose.

        Raises:
            DataError: If it has labels that the network has no output for.
        """
        if self.few_classes:
            dataset = dataset.seen_by(self.labels)
        outputs = math.prod(self._output_shape())
        highest = max(int(split.labels.max(initial=-1)) for split in (dataset.train, dataset.validation, dataset.test))
        if highest >= outputs:
            raise DataError(
                f"{dataset.name} has labels up to {highest}, and the network gives {outputs} outputs",
                f"Labels must run from 0 to {outputs - 1}: take the data that the network was trained for.",
            )
        return dataset

    def _output_shape(self) -> list[int]:
        (output,) = self.program.graph_signature.user_outputs
        node = next(node for node in self.program.graph.nodes if node.name == output)
        return list(programs.shape_of(node)[1:])

    @staticmethod
    def load(path: str | Path) -> Bundle:
        """Reads a bundle folder and checks every file against its recorded SHA-256.

        Raises:
            BundleError: If the folder is missing, damaged or of another schema.
        """
        path = Path(path)
        description = path / "bundle.json"
        if not description.is_file():
            raise BundleError(
                f"{path} is no bundle: it holds no bundle.json", "Make one with `edgekit compress … -o DIR`."
            )
        try:
            content = json.loads(description.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise BundleError(
                    f"{path} has schema {content['schema']}, this edgekit reads {SCHEMA}",
                    "Make the bundle again, or install the edgekit that wrote it.",
                )
            for name, expected in content["sha256"].items():
                if not (path / name).is_file() or sha256_file(path / name) != expected:
                    raise BundleError(
                        f"{path / name} is damaged: its SHA-256 is not the one recorded in bundle.json",
                        "Copy the bundle again, or make it again.",
                    )
            preprocessing = Preprocessing.from_dict(content["preprocessing"]) if content["preprocessing"] else None
            samples = _load_samples(path / "samples.npz") if "samples.npz" in content["sha256"] else None
            return Bundle(
                program=load_pt2(path / "program.pt2"),
                input_shape=tuple(content["input"]["shape"][1:]),
                preprocessing=preprocessing,
                labels=tuple(content["labels"]),
                source=content["source"],
                data=content["data"],
                steps=tuple(content["steps"]),
                metrics=content["metrics"],
                samples=samples,
                path=path,
                written=(path / "program.pt2", content["sha256"]["program.pt2"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{description} is damaged: {type(error).__name__}: {error}", "Copy the bundle again, or make it again."
            ) from error


def _load_samples(path: Path) -> Samples:
    with np.load(path, allow_pickle=False) as arrays:
        return Samples(arrays["inputs"], arrays["outputs"], arrays["labels"])


def _fix_times(path: Path) -> None:
    """Rewrites an ``.npz`` compressed and without clock times, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path) as source:
        members = [(name, source.read(name)) for name in source.namelist()]
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members:
            # Float images hardly shrink, and at the highest level not more.
            target.writestr(
                zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, compresslevel=1
            )


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

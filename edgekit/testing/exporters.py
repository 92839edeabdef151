"""What every exporter must pass, in each precision that it offers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.quantize.bias import round_biases
from edgekit.compress.quantize.calibration.observe import observe_ranges, parameters_of
from edgekit.compress.quantize.plan import insert, make_plan
from edgekit.compress.quantize.scheme import FLOAT_BITS
from edgekit.compress.rewrite import fold_batch_norm, remove_dropout
from edgekit.cost import cost_of
from edgekit.errors import ExportError
from edgekit.export.exporter import EXPORTERS, Exporter, Lowered, exporter_for
from edgekit.export.parity import TOLERANCES
from edgekit.export.run import RECORD, export, verify
from edgekit.program import attribute, duplicate, export_program, layer_name
from edgekit.runtimes.runtime import RUNTIMES, Options
from edgekit.runtimes.targets.target import target_for
from edgekit.sources.load import load
from edgekit.testing import networks


def bundle_of(
    network: str | Bundle, precision: str = "float32", weight_bits: int = 8, activation_bits: int = 8
) -> Bundle:
    """A bundle of one of the small networks (or made of one), quantized if asked, with samples of its own."""
    x = networks.images(32)
    if isinstance(network, Bundle):
        bundle = network
    else:
        bundle = Bundle(export_program(networks.make(network), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    if precision == "int8":
        module = bundle.module()
        remove_dropout(module)
        fold_batch_norm(module)
        plan = make_plan(module)
        if activation_bits == FLOAT_BITS:
            plan = replace(plan, values=[])
        parameters = parameters_of(plan, observe_ranges(module, plan, [x.numpy()]), bits=activation_bits)
        insert(module, plan, parameters, {layer_name(node): weight_bits for node in plan.compute})
        round_biases(module)
        bundle = bundle.with_module(module)
    return bundle.with_samples(x.numpy(), np.zeros(len(x), np.int64))


class ExporterConformance:
    """Subclass it and parametrise ``name`` over ``EXPORTERS``."""

    @pytest.fixture(scope="class")
    def digits(self) -> Bundle:
        """The embedded network with samples."""
        return compress(load("zoo:digits-cnn"), "quantize:images=64", "digits")

    def test_is_registered_with_a_runtime_that_is_there(self, name: str) -> None:
        exporter = exporter_for(name)
        assert exporter.name == name in EXPORTERS
        assert exporter.runtime in RUNTIMES
        assert exporter.input_layout in ("NCHW", "NHWC")

    @pytest.mark.parametrize("network", networks.NETWORKS)
    @pytest.mark.parametrize("precision", ["float32", "int8"])
    def test_every_network_is_proved(self, name: str, network: str, precision: str, tmp_path: Path) -> None:
        (file,) = export(bundle_of(network, precision), name, output=tmp_path)
        agreement = file.parity["agreement"]
        # The export itself holds it against the tolerance; here is that it can't be a tolerance of nothing.
        assert agreement["samples"] == 32
        assert agreement["sqnr_db"] is None or agreement["sqnr_db"] >= TOLERANCES[precision].sqnr_db
        if precision == "int8":
            # Placed so that the runtime fuses them: every layer with weights is computed in integers, or the notes tell.
            in_float = any("computes in float: " in note for note in file.parity["lowering"])
            assert (file.parity["int8_macs_share"] < 1) == in_float
        assert all(layer["tensor"] for layer in file.parity["layers"]), "a layer has no likeness in the file"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [*file.parity["files"], file.path.name + RECORD]
        )

    @pytest.mark.parametrize("network", ["plain", "residual", "depthwise"])
    def test_four_bit_weights_take_half_the_bytes_and_compute_the_same(
        self, name: str, network: str, tmp_path: Path
    ) -> None:
        (wide,) = export(bundle_of(network, "int8"), name, output=tmp_path / "8")
        (narrow,) = export(bundle_of(network, "int8", weight_bits=4), name, output=tmp_path / "4")
        weights = sum(layer.parameters for layer in cost_of(bundle_of(network).module()).layers if layer.macs)
        saved = wide.parity["size_bytes"] - narrow.parity["size_bytes"]
        if any("in 8 bits" in note for note in narrow.parity["lowering"]):
            assert abs(saved) < 0.1 * weights
        else:
            # A cast node for each layer is what it costs.
            assert saved > 0.45 * weights - 1500

    def test_half_precision_is_half_the_size(self, name: str, tmp_path: Path) -> None:
        bundle = bundle_of("plain")
        (whole,) = export(bundle, name, output=tmp_path)
        for precision in ("float16", "bfloat16"):
            if precision not in exporter_for(name).precisions:
                with pytest.raises(ExportError, match=f"can't hold {precision}"):
                    export(bundle, name, precision=precision, output=tmp_path)
                continue
            (half,) = export(bundle, name, precision=precision, output=tmp_path)
            assert half.parity["size_bytes"] < 0.6 * whole.parity["size_bytes"]

    @pytest.mark.parametrize("bits", [16, 32])
    def test_wide_activations_are_proved_or_refused(self, name: str, bits: int, tmp_path: Path) -> None:
        bundle = bundle_of("residual", "int8", activation_bits=bits)
        assert bundle.precision == "int8"
        if bits not in exporter_for(name).activations:
            with pytest.raises(ExportError, match="activations"):
                export(bundle, name, output=tmp_path)
            assert not list(tmp_path.iterdir())
            return
        (file,) = export(bundle, name, output=tmp_path)
        assert file.parity["agreement"]["sqnr_db"] > 70
        (whole,) = export(bundle_of("residual"), name, output=tmp_path)
        weights = sum(layer.parameters for layer in cost_of(bundle_of("residual").module()).layers if layer.macs)
        assert file.parity["size_bytes"] < whole.parity["size_bytes"] - 2 * weights

    def test_metadata_travels_in_the_file(self, name: str, digits: Bundle, tmp_path: Path) -> None:
        (file,) = export(digits, name, output=tmp_path, data="digits", images=20)
        with target_for("local") as target, target.worker() as worker:
            found = worker.open(file.path, exporter_for(name).runtime, Options())["metadata"]
        assert digits.preprocessing is not None
        assert found["labels"] == list(digits.labels)
        assert found["preprocessing"] == json.loads(json.dumps(digits.preprocessing.to_dict()))
        assert found["precision"] == "int8"
        assert found["bundle"] == digits.fingerprint

    def test_the_same_bundle_gives_the_same_bytes(self, name: str, tmp_path: Path) -> None:
        bundle = bundle_of("residual")
        first, second = (export(bundle, name, output=tmp_path / place)[0] for place in ("a", "b"))
        assert first.parity["files"] == second.parity["files"]

    def test_a_changed_file_is_found_out(self, name: str, tmp_path: Path) -> None:
        bundle = bundle_of("depthwise").save(tmp_path / "bundle")
        (file,) = export(bundle, name)
        assert verify(file.path)[0]["parity"]["agreement"]["samples"] == 32
        content = bytearray(file.path.read_bytes())
        content.append(0 if file.path.suffix != ".param" else 10)
        file.path.write_bytes(bytes(content))
        with pytest.raises(ExportError, match="SHA-256"):
            verify(file.path)

    def test_refuses_what_the_bundle_can_not_give(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="quantize"):
            export(bundle_of("plain"), name, precision="int8", output=tmp_path)
        with pytest.raises(ExportError, match="int8"):
            export(bundle_of("plain", "int8"), name, precision="float32", output=tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_wrong_lowering_is_refused_and_nothing_kept(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cls = type(exporter_for(name))
        write = cls.write

        def write_damaged(self: Exporter, lowered: Lowered, path: Path, metadata: dict[str, Any]) -> list[Path]:
            module = duplicate(lowered.module)
            attribute(module, "conv2.weight").data[3] *= -1
            return write(self, replace(lowered, module=module), path, metadata)

        bundle = bundle_of("plain")
        monkeypatch.setattr(cls, "write", write_damaged)
        with pytest.raises(ExportError, match="first layer that differs is conv2"):
            export(bundle, name, output=tmp_path / "out")
        assert not (tmp_path / "out").exists()

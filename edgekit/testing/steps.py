"""What every compression step must pass, whatever it does."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.compress.step import STEPS, Step, make_step, step_class
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset
from edgekit.data.references import load_data
from edgekit.errors import EdgekitError, UsageError
from edgekit.recipe import load_recipe, save_recipe
from edgekit.settings import parse_text
from edgekit.sources.load import load

# "Smaller means smaller": what a bundle's program takes over its weights in theory, the graph's JSON aside.
SIZE_TOLERANCE = 0.10


class StepConformance:
    """Subclass it and parametrise ``name`` over ``STEPS``; it runs each step by its ``example`` on the digits."""

    @pytest.fixture(scope="class")
    def data(self) -> Dataset:
        """The embedded data set."""
        return load_data("digits")

    @pytest.fixture(scope="class")
    def before(self) -> Bundle:
        """The embedded network."""
        return load("zoo:digits-cnn")

    def test_is_registered_with_all_that_help_shows(self, name: str) -> None:
        cls = step_class(name)
        assert cls.name == name in STEPS
        assert cls.summary
        assert cls.source
        assert cls.__doc__ is not None
        for setting in dataclasses.fields(cls):
            assert f"{setting.name}:" in cls.__doc__, f"the setting {setting.name} is not documented"

    def test_settings_round_trip(self, name: str, tmp_path: Path) -> None:
        step = example(name)
        values = step.to_dict()
        assert make_step(values.pop("step"), values) == step
        save_recipe([step], tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml") == [step]

    def test_an_unknown_setting_is_refused_by_name(self, name: str) -> None:
        with pytest.raises(UsageError, match="no_such_setting"):
            make_step(name, {"no_such_setting": 1})

    def test_leaves_its_input_alone_and_repeats_to_the_bit(self, name: str, before: Bundle, data: Dataset) -> None:
        fingerprint = fresh(before)
        first, second = (compress(before, example(name), data) for _ in range(2))
        assert fresh(before) == fingerprint
        assert fresh(first) == fresh(second)
        assert fresh(first) != fingerprint, "the example changes nothing"

    def test_another_interruption_same_result(self, name: str, before: Bundle, data: Dataset, tmp_path: Path) -> None:
        whole = compress(before, example(name), data, output=tmp_path / "whole")
        calls = []

        def stop_in_the_middle(done: int, total: int, text: str) -> None:
            calls.append(done)
            if done * 2 >= total and len(calls) > 1:
                raise KeyboardInterrupt

        try:
            compress(before, example(name), data, output=tmp_path / "stopped", progress=stop_in_the_middle)
        except KeyboardInterrupt:
            assert not (tmp_path / "stopped").exists(), "a half-made bundle was left behind"
        again = compress(before, example(name), data, output=tmp_path / "stopped")
        assert fresh(again) == fresh(whole)
        assert not list(tmp_path.glob(".*")), "checkpoints were left behind"

    def test_result_is_an_ordinary_bundle(self, name: str, before: Bundle, data: Dataset, tmp_path: Path) -> None:
        after = compress(before, example(name), data, output=tmp_path / "after")
        loaded = Bundle.load(tmp_path / "after")
        assert loaded.samples is not None
        assert after.samples is not None
        with torch.no_grad():
            outputs = loaded.module()(torch.from_numpy(loaded.samples.inputs)).numpy()
        np.testing.assert_array_equal(outputs, loaded.samples.outputs)
        assert [entry["step"] for entry in loaded.steps] == [name]
        assert loaded.labels == after.labels
        assert list(loaded.labels) == [name for name in before.labels if name in loaded.labels]
        assert loaded.preprocessing == before.preprocessing

    def test_holds_nothing_that_the_graph_does_not_read(self, name: str, before: Bundle, data: Dataset) -> None:
        after = compress(before, example(name), data)
        module = after.module()
        read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        # Batch norm counts its batches in a buffer that only training reads.
        held = {key for key in after.program.state_dict if not key.endswith("num_batches_tracked")}
        assert held <= read, f"masks or copies: {sorted(held - read)}"

    def test_smaller_means_smaller_on_disk(self, name: str, before: Bundle, data: Dataset, tmp_path: Path) -> None:
        compress(before, example(name), data, output=tmp_path / "after")
        path = tmp_path / "after" / "program.pt2"
        theory = cost_of(Bundle.load(tmp_path / "after").module()).bytes
        with zipfile.ZipFile(path) as archive:
            weights = sum(
                e.compress_size for e in archive.infolist() if "/weights/" in e.filename or "/constants/" in e.filename
            )
            others = path.stat().st_size - weights
        assert weights <= theory * (1 + SIZE_TOLERANCE)
        assert others < 40 * 1024, "the graph's description is larger than a small network's weights"

    def test_an_error_names_the_step(self, name: str, before: Bundle) -> None:
        try:
            compress(before, example(name))
        except EdgekitError as error:
            assert name in error.what  # noqa: PT017
            assert "--data" in error.remedy  # noqa: PT017


def example(name: str) -> Step:
    """The step with the quick settings that its class gives as an example."""
    return make_step(name, parse_text(step_class(name).example))


def fresh(bundle: Bundle) -> str:
    """The bundle's fingerprint, computed anew."""
    bundle.__dict__.pop("fingerprint", None)
    return bundle.fingerprint

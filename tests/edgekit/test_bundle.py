"""Bundles on disk: whole or not at all, and what is damaged is found out."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.data.references import load_data
from edgekit.errors import BundleError, DataError, EdgekitError
from edgekit.sources.load import load


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    data = load_data("digits")
    loaded = load("zoo:digits-cnn")
    x, y = next(iter(data.validation.batches(loaded.preprocessing, 4)))
    return loaded.with_samples(x, y)


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "a")
    found = Bundle.load(tmp_path / "a")
    assert found.fingerprint == bundle.fingerprint
    assert found.describe() == bundle.describe()
    assert found.samples is not None
    assert bundle.samples is not None
    np.testing.assert_array_equal(found.samples.outputs, bundle.samples.outputs)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["bundle.json", "program.pt2", "samples.npz"]


def test_equal_bundles_are_equal_files(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        bundle.save(tmp_path / name)
    for file in ("bundle.json", "program.pt2", "samples.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("file", ["program.pt2", "samples.npz", "bundle.json"])
def test_damage_is_found_out(bundle: Bundle, file: str, tmp_path: Path) -> None:
    bundle.save(tmp_path / "a")
    path = tmp_path / "a" / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BundleError, match=file):
        Bundle.load(tmp_path / "a")


def test_another_schema_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "a")
    path = tmp_path / "a" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(BundleError, match="schema 99"):
        Bundle.load(tmp_path / "a")


def test_a_full_disk_leaves_the_old_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.save(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(EdgekitError, match="the disk is full"):
        bundle.save(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_labels_without_an_output_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", train_x=x[:60], train_y=np.arange(60) % 10, test_x=x[60:], test_y=np.arange(20))
    with pytest.raises(DataError, match="labels up to 19, and the network gives 10 outputs"):
        bundle.view_of(load_data(f"npz:{tmp_path / 'd.npz'}"))

"""The families of the zoo in every format. At their full size all are exported by benches/zoo.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.export.exporter import EXPORTERS
from edgekit.export.run import export
from edgekit.testing import families


@pytest.fixture(scope="module")
def images() -> Bundle:
    return families.images()


@pytest.fixture(scope="module")
def sequences() -> Bundle:
    return families.sequences()


@pytest.mark.parametrize("kind", ["images", "sequences"])
@pytest.mark.parametrize("name", EXPORTERS)
def test_families_compute_the_same_in_every_format(
    name: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (file,) = export(request.getfixturevalue(kind), name, output=tmp_path)
    agreement = file.parity["agreement"]
    assert agreement["max_abs"] < 1e-3
    assert agreement["sqnr_db"] > 90

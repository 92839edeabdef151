"""Every figure of the README comes from a result in benches/results."""

from __future__ import annotations

import runpy

import pytest

from tests.conftest import REPOSITORY


def test_the_tables_of_the_readme_are_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benches"))
    tables = runpy.run_path(str(REPOSITORY / "benches" / "tables.py"))["tables"]()
    assert tables in (REPOSITORY / "README.md").read_text(), "run: python benches/tables.py --write"

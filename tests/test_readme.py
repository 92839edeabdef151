"""Every figure of the documents comes from a result in benches/results, and every command that they name exists."""

from __future__ import annotations

import re
import runpy

import pytest

from edgekit.compress.step import STEPS
from tests.conftest import REPOSITORY

DOCUMENTS = ("README.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))))


def test_the_tables_are_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benches"))
    documents = runpy.run_path(str(REPOSITORY / "benches" / "tables.py"))["documents"]()
    assert set(documents) == {"README.md", "docs/results.md"}
    for name, tables in documents.items():
        assert tables in (REPOSITORY / name).read_text(), f"{name}: run python benches/tables.py --write"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_is_there(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    for bench in re.findall(r"benches/\w+\.py", text):
        assert (REPOSITORY / bench).is_file(), f"{name} names {bench}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / name).parent.joinpath(link).exists(), f"{name} links {link}"


def test_the_guide_names_every_step() -> None:
    guide = (REPOSITORY / "docs" / "guide.md").read_text()
    assert [name for name in STEPS if f"`{name}" not in guide] == []

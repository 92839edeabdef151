"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real models and data sets; the test is skipped, in so many words, where it is missing."""
    folder = Path(os.environ.get("EDGEKIT_REALDATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "sets").is_dir():
        pytest.skip(f"real data not found at {folder}; set EDGEKIT_REALDATA to its folder")
    return folder

"""The embedded network and data, which most techniques are tried on."""

from __future__ import annotations

import pytest

from edgekit.bundle import Bundle
from edgekit.data.dataset import Dataset
from edgekit.data.references import load_data
from edgekit.sources.load import load


@pytest.fixture(scope="session")
def data() -> Dataset:
    """The embedded data set."""
    return load_data("digits")


@pytest.fixture(scope="session")
def before() -> Bundle:
    """The embedded network."""
    return load("zoo:digits-cnn")

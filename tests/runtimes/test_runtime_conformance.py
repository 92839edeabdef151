"""Every registered runtime passes the suite."""

from __future__ import annotations

import pytest

from edgekit.runtimes.runtime import RUNTIMES
from edgekit.testing.runtimes import RuntimeConformance


@pytest.mark.parametrize("name", RUNTIMES, scope="class")
class TestRuntimes(RuntimeConformance):
    """Adding a runtime to the registry adds its tests."""

"""Every registered step passes the suite."""

from __future__ import annotations

import pytest

from edgekit.compress.step import STEPS
from edgekit.testing.steps import StepConformance


@pytest.mark.parametrize("name", STEPS)
class TestSteps(StepConformance):
    """Adding a step to the registry adds its tests."""

"""Every registered target passes the suite, and the fake one too."""

from __future__ import annotations

import pytest

from edgekit.runtimes.targets.target import TARGETS, Target, target_for
from edgekit.testing.fakes import FakeTarget
from edgekit.testing.targets import TargetConformance


@pytest.mark.parametrize("name", [*TARGETS, "fake"])
class TestTargets(TargetConformance):
    """Adding a target to the registry adds its tests."""

    @pytest.fixture
    def target(self, name: str) -> Target:
        return FakeTarget() if name == "fake" else target_for(name)

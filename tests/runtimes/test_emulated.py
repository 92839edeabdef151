"""ARM CPUs under emulation: real aarch64 runtimes, the same outputs, and instructions counted by class."""

from __future__ import annotations

import pytest

from edgekit.runtimes.targets.target import Target, target_for
from edgekit.testing.targets import TargetConformance

pytestmark = [pytest.mark.targets, pytest.mark.usefixtures("emulated_root")]


class TestEmulated(TargetConformance):
    """The suite, on the emulator."""

    @pytest.fixture(scope="class")
    def target(self) -> Target:
        return target_for("emulated:cortex-a76")

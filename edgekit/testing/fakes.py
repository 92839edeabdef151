"""A runtime whose file says how it behaves, and a target that is no real machine."""

from __future__ import annotations

from typing import Any, ClassVar

from edgekit.runtimes.targets.local import LocalTarget
from edgekit.testing.fake_runtime import MISSING, RUNTIME, FakeRuntime, FakeSession, MissingRuntime, write_fake

__all__ = ["MISSING", "RUNTIME", "FakeRuntime", "FakeSession", "FakeTarget", "MissingRuntime", "write_fake"]


class FakeTarget(LocalTarget):
    """Runs workers here and says that its times mean nothing, as an emulator's do."""

    name = "fake"
    times_are_real: ClassVar[bool] = False

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(), "target": self.name, "cpu": "a fake CPU", "cpu_flags": [], "cores": 4, "load_average": 0.0,
            "governor": "performance", "clock_khz": None,
        }  # fmt: skip

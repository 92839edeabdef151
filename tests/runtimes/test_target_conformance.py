"""Every registered target passes the suite, and the fake one too; those that need more than this machine are beside."""

from __future__ import annotations

import pytest

from edgekit.errors import UnknownNameError, UsageError
from edgekit.runtimes.targets.target import TARGETS, Target, target_for
from edgekit.testing.fakes import FakeTarget
from edgekit.testing.targets import TargetConformance
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", ["local", "fake"])
class TestTargets(TargetConformance):
    """Targets that are always there."""

    @pytest.fixture
    def target(self, name: str) -> Target:
        return FakeTarget() if name == "fake" else target_for(name)


@pytest.mark.parametrize("kind", TARGETS)
def test_adding_a_target_to_the_registry_demands_its_tests(kind: str) -> None:
    file = {"local": "target_conformance"}.get(kind, kind)
    text = (REPOSITORY / "tests" / "runtimes" / f"test_{file}.py").read_text()
    assert "(TargetConformance)" in text


def test_names() -> None:
    with pytest.raises(UnknownNameError, match="no target is called 'emulate'"):
        target_for("emulate:cortex-a76")
    with pytest.raises(UnknownNameError, match="no emulated CPU is called 'cortex-a99'"):
        target_for("emulated:cortex-a99")
    with pytest.raises(UsageError, match="takes nothing after its name, not 'host'"):
        target_for("local:host")

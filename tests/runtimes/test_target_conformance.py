"""Every registered target passes the suite, and the fake one too; those that need more than this machine are beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, ExecutionError, UnknownNameError, UsageError
from edgekit.runtimes.runtime import Options
from edgekit.runtimes.targets.target import TARGETS, Target, target_for
from edgekit.testing.fakes import RUNTIME, FakeTarget, write_fake
from edgekit.testing.targets import TargetConformance, X
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


def test_a_full_disk_is_a_clear_error_on_either_side(tmp_path: Path) -> None:
    with target_for("local").worker() as worker:
        worker.open(write_fake(tmp_path / "a.fake"), RUNTIME, Options())
        source, result = worker._folder / "input.npy", worker._folder / "output.npz"
        result.symlink_to("/dev/full")
        with pytest.raises(ExecutionError, match="the target's disk is full"):
            worker.run(X)
        source.unlink()
        source.symlink_to("/dev/full")
        with pytest.raises(EdgekitError, match=r"the disk is full: .*input\.npy"):
            worker.run(X)
        source.unlink()
        result.unlink()
        assert worker.run(X)[0].shape == (2, 1)


def test_names() -> None:
    with pytest.raises(UnknownNameError, match="no target is called 'emulate'"):
        target_for("emulate:cortex-a76")
    with pytest.raises(UnknownNameError, match="no emulated CPU is called 'cortex-a99'"):
        target_for("emulated:cortex-a99")
    with pytest.raises(UsageError, match="takes nothing after its name, not 'host'"):
        target_for("local:host")

"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from edgekit.arithmetic import prepare

REPOSITORY = Path(__file__).resolve().parent.parent

# Tests run side by side: one thread each, for two thread pools on two cores slow each other many times over.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# As the command does: freed memory is kept for the next tensor.
prepare()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where EDGEKIT_NO_SKIPS is set, as where it is decided what lands, a test that would be skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("EDGEKIT_NO_SKIPS"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason} (a failure, as EDGEKIT_NO_SKIPS is set)"
    return report


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real models and data sets; the test is skipped, in so many words, where it is missing."""
    folder = Path(os.environ.get("EDGEKIT_REALDATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "sets").is_dir():
        pytest.skip(f"real data not found at {folder}; set EDGEKIT_REALDATA to its folder")
    return folder


@pytest.fixture(scope="session")
def emulated_root() -> None:
    """The emulated root, made in the cache folder where it is not yet; skipped, in so many words, where it can't be."""
    _set_up("")


@pytest.fixture(scope="session")
def emulated_armv7_root() -> None:
    """The root of the emulated 32-bit CPUs, likewise."""
    _set_up("cortex-a7")


def _set_up(place: str) -> None:
    from edgekit.errors import PackagesError
    from edgekit.runtimes.targets.target import target_kind

    kind = target_kind("emulated")
    try:
        if kind.lacking(place)[0]:
            kind.setup(lambda done, total, text: None, place)
    except PackagesError as error:
        pytest.skip(f"no emulated root: {error.what}")

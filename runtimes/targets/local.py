"""This machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from edgekit.arithmetic import without
from edgekit.runtimes.facts import machine_facts
from edgekit.runtimes.targets.link import SameDisk, Transfer
from edgekit.runtimes.targets.target import Target


class LocalTarget(Target):
    """Workers are child processes of this one."""

    name = "local"
    has_edgekit: ClassVar[bool] = True
    summary: ClassVar[str] = "this machine"
    example: ClassVar[str] = "local"

    def describe(self) -> dict[str, Any]:
        return {"target": self.name, **machine_facts()}

    def start(self, folder: Path, log: Path, *, counting: bool = False) -> tuple[subprocess.Popen[bytes], Transfer]:
        environment = without(os.environ)
        # Runtimes are told their threads by option; libraries below them read these.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.pop(name, None)
        environment["TF_CPP_MIN_LOG_LEVEL"] = "2"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgekit.runtimes.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        return process, SameDisk()

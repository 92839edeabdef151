"""How long each operator of a file takes, as its runtime executes it: what a session's ``profile`` gives.

This module runs on targets: it needs Python alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

WARM_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator that a runtime executed, after its fusions.

    Attributes:
        name: In the executed graph; no two of a profile share one.
        type: As the runtime calls it.
        inputs: Tensors that it reads, constants included, as far as the runtime names them.
        outputs: Tensors that it writes.
        samples_ms: Its time in each run.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The times of all operators of a file, and of the file as a whole.

    Attributes:
        operators: In the order of execution; each has as many samples as there were runs.
        whole_ms: One inference without any profiling, in the same process, in turn with the profiled ones.
        profiled_ms: The profiled inferences as a whole, seen from outside.
        method: How the times were taken, in a sentence.
        overhead_ms: What asking for its time adds to each operator's sample, measured; 0 where it can't be told apart.
        resolution_ms: The step of the clock that timed the operators.
    """

    operators: tuple[Operator, ...]
    whole_ms: tuple[float, ...]
    profiled_ms: tuple[float, ...]
    method: str
    overhead_ms: float = 0.0
    resolution_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Profile:
        """Of what :meth:`to_dict` gave."""
        fields: dict[str, Any] = _tuples(value)
        return cls(**{**fields, "operators": tuple(Operator(**_tuples(one)) for one in value["operators"])})


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, (list, tuple)) else item for key, item in value.items()}


def timed(call: Callable[[], object]) -> float:
    """How long a call takes, in ms."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def distinct(names: list[str]) -> list[str]:
    """The same names, every later one of equals with its number behind it."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found

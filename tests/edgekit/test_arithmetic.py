"""The process that trains is set up for it; the process that measures is not."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.arithmetic import no_collections, without

# Times that the kernel handed out memory while a large array was made and freed twenty times: never, where it is kept; for
# every page, or every huge page of 2 MiB, where it is not.
FAULTS = """
import resource, sys
import numpy as np
import edgekit
if sys.argv[1] == "prepared":
    edgekit.Bundle
made = np.ones(5_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    del made
    made = np.ones(5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
MANY = 19 * 5_000_000 * 8 // 2**21 // 2
SPINS = """
import os
import edgekit
edgekit.Bundle
from edgekit.arithmetic import no_collections, without
print(os.environ.get("GOMP_SPINCOUNT"), without(os.environ).get("GOMP_SPINCOUNT"))
"""


def _run(code: str, *words: str, **variables: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux hands out")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    assert int(_run(FAULTS, "as it is")) > MANY
    assert int(_run(FAULTS, "prepared")) < MANY / 4


@pytest.mark.parametrize("variable", ["MALLOC_TOP_PAD_", "GLIBC_TUNABLES"])
@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux hands out")
def test_memory_that_the_user_has_set_up_is_left_as_it_is(variable: str) -> None:
    value = {"MALLOC_TOP_PAD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.top_pad=131072"}[variable]
    assert int(_run(FAULTS, "prepared", **{variable: value})) > MANY


def test_waiting_threads_sleep_here_and_not_where_it_is_measured() -> None:
    assert _run(SPINS) == "1000 None"


@pytest.mark.parametrize(
    ("variable", "value", "found"), [("GOMP_SPINCOUNT", "7", "7 7"), ("OMP_WAIT_POLICY", "active", "None None")]
)
def test_threads_that_the_user_has_set_up_are_left_as_they_are(variable: str, value: str, found: str) -> None:
    assert _run(SPINS, **{variable: value}) == found


def test_an_environment_that_was_not_touched_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.arithmetic._ours", False)
    assert without({"GOMP_SPINCOUNT": "1000", "A": "b"}) == {"GOMP_SPINCOUNT": "1000", "A": "b"}


def test_a_worker_imports_nothing_that_sets_it_up() -> None:
    code = (
        "import sys; import edgekit.runtimes.worker, edgekit.runtimes.torch, edgekit.program;"
        "import edgekit.arithmetic as a; print(a._ours)"
    )
    assert _run(code, HOME=str(Path.home())) == "False"


def test_collections_are_as_they_were_after_a_call_without_them() -> None:
    with no_collections():
        assert not gc.isenabled()
        with no_collections():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="of the caller"), no_collections():
        raise ValueError("of the caller")
    assert gc.isenabled()

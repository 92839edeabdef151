"""The package list is explicit, so it is held against the folders; and what decides skips no test."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

from edgekit.runtimes.targets.kit import worker_files
from tests.conftest import REPOSITORY

ROOMS = {
    "edgekit": "edgekit",
    "compress": "edgekit.compress",
    "export": "edgekit.export",
    "runtimes": "edgekit.runtimes",
}


def test_every_folder_of_the_rooms_is_listed() -> None:
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    listed = set(content["tool"]["setuptools"]["packages"])
    folders = set()
    for room, package in ROOMS.items():
        for file in (REPOSITORY / room).rglob("*.py"):
            inner = file.parent.relative_to(REPOSITORY / room).parts
            folders.add(".".join((package, *inner)))
    assert listed == folders


def test_the_light_import_stays_light() -> None:
    program = (
        "import sys, edgekit, edgekit.cli.main\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'ncnn', 'jax', 'sklearn', 'rich.progress'} & set(sys.modules)\n"
        "sys.exit(f'imported for --help: {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_runs_on_a_target_imports_nothing_of_edgekit() -> None:
    allowed = {"torch.py"}  # runs where edgekit is installed, and says so
    for name in sorted(file.rsplit("/", 1)[1] for file in worker_files() if file.startswith("edgekit/runtimes/")):
        text = (REPOSITORY / "runtimes" / name).read_text()
        assert name in allowed or "from edgekit" not in text.replace("python -m edgekit", ""), name


def test_the_worker_runs_from_a_bare_copy_of_its_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import json
    import shutil

    shutil.copytree(REPOSITORY / "runtimes", tmp_path / "runtimes")
    # -I keeps the current folder and the environment out; the copy alone is added.
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from runtimes.worker import main; main()"
    request = json.dumps({"do": "open", "runtime": "ncnn", "path": "none.param", "threads": 1, "taps": [], "extra": {}})
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], input=request + "\n", capture_output=True, text=True, check=False
    )
    answer = json.loads(done.stdout)
    assert answer["error"] == "failed"
    assert "none.param" in answer["message"]


@pytest.mark.parametrize(("settings", "code"), [({}, 0), ({"EDGEKIT_NO_SKIPS": "1"}, 1)])
def test_a_skip_fails_where_none_is_wanted(settings: dict[str, str], code: int) -> None:
    """With the tests that real data is missing for, by fixture, and the run that decides, which asks for it."""
    assert "export EDGEKIT_NO_SKIPS=1\n" in (REPOSITORY / ".ci" / "run").read_text()
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("EDGEKIT_NO_SKIPS", "PYTEST_ADDOPTS")
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_realdata.py", "-k", "cifar10_splits"],
        cwd=REPOSITORY, env={**inherited, **settings, "EDGEKIT_REALDATA": "nowhere"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert ("1 skipped" if code == 0 else "1 error") in done.stdout
    assert "real data not found at nowhere" in done.stdout

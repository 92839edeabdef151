"""What every runtime must pass, through a worker as the commands use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.benchmark.clues import place_operators
from edgekit.benchmark.mapping import program_groups
from edgekit.bundle import Bundle
from edgekit.errors import ExecutionError, RuntimeUnavailableError
from edgekit.export.exporter import EXPORTERS, exporter_for
from edgekit.export.run import export
from edgekit.program import output_node
from edgekit.runtimes.runtime import RUNTIMES, SUFFIXES, Options, RunError, runtime_for
from edgekit.runtimes.settings import choices
from edgekit.runtimes.targets.target import target_for
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of

# Float16 has 11 bits of fraction, bfloat16 8: the networks' outputs are about 1, and a few roundings add up.
_TOLERANCES = {"float16": 5e-3, "fp16": 5e-3, "bfloat16": 5e-2, "bf16": 5e-2}


def file_for(runtime: str, bundle: Bundle, folder: Path) -> Path:
    """A file of a bundle for a runtime: by the exporter whose files it runs; the bundle itself for torch."""
    usual = SUFFIXES[runtime_for(runtime).suffix]
    for name in EXPORTERS:
        if exporter_for(name).runtime == usual:
            return export(bundle, name, output=folder)[0].path
    return bundle.save(folder / "bundle").path or folder


def other_values(name: str) -> list[tuple[str, Any]]:
    """Every setting of a runtime with every value that is not its default."""
    cls = runtime_for(name).settings
    return [(key, value) for key, values in choices(cls).items() for value in values if value != getattr(cls(), key)]


def typed(setting: str, value: Any) -> str:
    """As a user types it."""
    return f"{setting}={str(value).lower() if isinstance(value, bool) else value}"


def is_told(setting: str, value: Any, facts: Mapping[str, Any]) -> bool:
    """Whether a session's facts say that it uses this value, or that it does not honour it."""
    if any(setting in sentence for sentence in facts["not_honoured"]):
        return True
    seen = {**facts, **facts.get("options", {})}
    # What is told in words of its own.
    seen |= {"compile": facts.get("mode") == "compiled", "xnnpack": facts.get("delegate") == "XNNPACK"}
    seen |= {"fusion": facts.get("delegate_partitions", 0) < 4, "kernels": "integer_weights" in facts}
    return bool(seen.get(setting) == value)


class RuntimeConformance:
    """Subclass it and parametrise ``name`` over ``RUNTIMES``."""

    @pytest.fixture(scope="class")
    def bundles(self) -> dict[str, Bundle]:
        """One small network in float and in int8."""
        return {precision: bundle_of("residual", precision) for precision in ("float32", "int8")}

    @pytest.fixture(scope="class", params=["float32", "int8"])
    def opened(
        self,
        name: str,
        request: pytest.FixtureRequest,
        bundles: dict[str, Bundle],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> tuple[Path, Bundle]:
        """A file for the runtime, and its bundle."""
        bundle = bundles[request.param]
        return file_for(name, bundle, tmp_path_factory.mktemp("files")), bundle

    def test_is_registered_and_works_here(self, name: str) -> None:
        runtime = runtime_for(name)
        assert runtime.name == name in RUNTIMES
        found = runtime.availability()
        assert found.usable, f"{found.reason}; {runtime.install}"
        assert found.version

    def test_a_batch_gives_what_its_samples_give(self, name: str, opened: tuple[Path, Bundle]) -> None:
        path, bundle = opened
        x = networks.images(5).numpy()
        with target_for("local") as target, target.worker() as worker:
            worker.open(path, name, Options())
            together = worker.run(x)[0]
            single = np.concatenate([worker.run(one[None])[0] for one in x])
        assert together.shape == (5, networks.CLASSES)
        assert together.dtype == np.float32
        # Sums may be ordered otherwise for a batch; in int8 that can move a value across a rounding step.
        step = 0.0 if bundle.precision == "float32" else 0.2
        np.testing.assert_allclose(together, single, rtol=1e-4, atol=1e-4 + step)

    def test_tells_what_it_used(self, name: str, opened: tuple[Path, Bundle]) -> None:
        with target_for("local") as target, target.worker() as worker:
            facts = worker.open(opened[0], name, Options(threads=2))["facts"]
        assert facts["threads"] == 2
        assert facts["version"]
        assert facts["library"]
        assert facts["not_honoured"] == []

    def test_two_threads_are_one_more(self, name: str, opened: tuple[Path, Bundle]) -> None:
        path, _ = opened
        if len(os.sched_getaffinity(0)) < 2:
            pytest.skip("two threads take two cores, and this process may use one")
        found = []
        for threads in (1, 2):
            with target_for("local") as target, target.worker() as worker:
                worker.open(path, name, Options(threads=threads))
                worker.run(networks.images(1).numpy())
                found.append(len(os.listdir(f"/proc/{worker._process.pid}/task")))
        assert found[1] > found[0]

    def test_taps_are_intermediate_tensors(self, name: str, opened: tuple[Path, Bundle]) -> None:
        path, bundle = opened
        assert bundle.samples is not None
        with target_for("local") as target:
            with target.worker() as worker:
                worker.open(path, name, Options())
                plain = worker.run(bundle.samples.inputs[:1])[0]
            with target.worker() as worker:
                worker.open(path, name, Options(taps=("*",)))
                tapped, taps = worker.run(bundle.samples.inputs[:1])
        assert len(taps) >= 4
        step = 0.0 if bundle.precision == "float32" else 0.2
        np.testing.assert_allclose(tapped, plain, rtol=1e-4, atol=1e-4 + step)

    def test_times_are_positive_and_as_many_as_asked(self, name: str, opened: tuple[Path, Bundle]) -> None:
        path, bundle = opened
        assert bundle.samples is not None
        with target_for("local") as target, target.worker() as worker:
            load_ms = worker.open(path, name, Options())["load_ms"]
            timed = worker.time(bundle.samples.inputs[:1], runs=7, seconds=0.0, warmup_runs=1, warmup_seconds=0.0)
            memory = worker.memory()
        assert load_ms > 0
        assert timed["first_run_ms"] > 0
        assert len(timed["samples_ms"]) == 7
        assert min(timed["samples_ms"]) > 0
        assert memory["peak_bytes"] > memory["before_bytes"] > 1 << 20

    def test_every_operator_has_its_time_and_its_layer(self, name: str, opened: tuple[Path, Bundle]) -> None:
        path, bundle = opened
        assert bundle.samples is not None
        with target_for("local") as target, target.worker() as worker:
            told = worker.open(path, name, Options())
            _, profile = worker.profile(bundle.samples.inputs[:1], 9)
            again = worker.run(bundle.samples.inputs[:1])[0]
        assert np.isfinite(again).all(), "the session works on"
        names = [operator.name for operator in profile.operators]
        assert len(set(names)) == len(names)
        assert all(len(operator.samples_ms) == 9 for operator in profile.operators)
        assert all(sample >= 0 for operator in profile.operators for sample in operator.samples_ms)
        assert len(profile.whole_ms) == len(profile.profiled_ms) == 9
        assert min(profile.whole_ms) > 0
        program = program_groups(bundle.module())
        places = place_operators(program, path, name, told, profile.operators)
        assert len(places) == len(names)
        for position, group in enumerate(program.groups):
            if group.cost.macs:
                assert position in places, f"no operator computes {group.cost.path}: {names}"
        assert "(other)" not in places, "an operator has no place"

    def test_a_wrong_shape_is_refused_and_the_worker_lives(self, name: str, opened: tuple[Path, Bundle]) -> None:
        path, bundle = opened
        assert bundle.samples is not None
        with target_for("local") as target, target.worker() as worker:
            worker.open(path, name, Options())
            with pytest.raises(ExecutionError, match="shape"):
                worker.run(np.zeros((1, 3, 7, 7), np.float32))
            assert np.isfinite(worker.run(bundle.samples.inputs[:1])[0]).all()

    @pytest.fixture
    def refused(self) -> Mapping[str, set[str]]:
        """For each runtime the settings that can't be alone, or do not fit float32 or int8 files, with what they meet there."""
        return {
            "torch float32": {"precision=tf32", "cuda_graphs=true", "precision=int8"},
            "torch int8": {
                "precision=tf32",
                "cuda_graphs=true",
                "precision=float16",
                "precision=bfloat16",
                "compile=true",
            },
            **{
                f"onnxruntime {file}": {f"precision={p}" for p in ("tf32", "float16", "int8")}
                for file in ("float32", "int8")
            },
            **{f"tflite {file}": {"reference=true"} for file in ("float32", "int8")},
        }

    def test_each_setting_agrees_with_the_defaults_and_is_told(
        self, name: str, opened: tuple[Path, Bundle], refused: Mapping[str, set[str]]
    ) -> None:
        path, bundle = opened
        runtime, x = runtime_for(name), networks.images(3).numpy()
        with runtime.open(str(path), Options()) as session:
            plain = session.run(x)[0]
        # Integers may be rounded to the next step.
        step = float(output_node(bundle.module()).args[1]) if bundle.precision == "int8" else 0.0  # type: ignore[arg-type]
        lacking, meant = runtime.lacking(), refused.get(f"{name} {bundle.precision}", set())
        for setting, value in other_values(name):
            text = typed(setting, value)
            if text in lacking:
                continue
            if text in meant:
                with pytest.raises(RunError, match=setting):
                    runtime.open(str(path), Options(extra={setting: value}))
                continue
            with runtime.open(str(path), Options(extra={setting: value})) as session:
                output, facts = session.run(x)[0], session.facts()
            used = f"{text} {facts.get('precision', '')}"
            loose = [limit for word, limit in _TOLERANCES.items() if word in used]
            np.testing.assert_allclose(output, plain, atol=max([1e-5, *loose]) + 1.01 * step, rtol=0, err_msg=text)
            assert is_told(setting, value, facts), (text, facts)

    def test_what_is_missing_here_is_an_error_with_the_remedy_and_no_other_run(
        self, name: str, opened: tuple[Path, Bundle]
    ) -> None:
        lacking = runtime_for(name).lacking()
        values = {typed(setting, value): (setting, value) for setting, value in other_values(name)}
        assert set(lacking) <= set(values)
        for text, (setting, value) in values.items():
            if text not in lacking:
                continue
            with target_for("local") as target, target.worker() as worker:
                with pytest.raises(RuntimeUnavailableError, match=text) as caught:
                    worker.open(opened[0], name, Options(extra={setting: value}))
                assert lacking[text].reason in caught.value.what
                assert caught.value.remedy == lacking[text].install

    def test_an_unknown_setting_or_value_is_refused_with_the_known_ones(
        self, name: str, opened: tuple[Path, Bundle]
    ) -> None:
        known = choices(runtime_for(name).settings)
        with target_for("local") as target, target.worker() as worker:
            with pytest.raises(ExecutionError, match=f"no setting 'speed'; its settings: {', '.join(known)}"):
                worker.open(opened[0], name, Options(extra={"speed": "high"}))
            setting, values = next(iter(known.items()))
            with pytest.raises(ExecutionError, match=f"{setting} is 'high', not one of {values[0]}"):
                worker.open(opened[0], name, Options(extra={setting: "high"}))

    @pytest.mark.parametrize("keep", [0, 100, 0.5])
    def test_a_truncated_file_is_an_error_of_ours(
        self, name: str, opened: tuple[Path, Bundle], keep: float, tmp_path: Path
    ) -> None:
        path, _ = opened
        target_file = path / "program.pt2" if path.is_dir() else path
        content = target_file.read_bytes()
        broken = tmp_path / target_file.name
        broken.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
        binary = target_file.with_suffix(".bin")
        if target_file.suffix == ".param":
            (tmp_path / binary.name).write_bytes(binary.read_bytes())
        with (
            target_for("local") as target,
            target.worker() as worker,
            pytest.raises(ExecutionError, match=str(broken.name)),
        ):
            worker.open(broken, name, Options())

    def test_a_stranger_s_file_is_an_error_of_ours(self, name: str, tmp_path: Path) -> None:
        suffix = runtime_for(name).suffix
        (tmp_path / f"noise{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
        with target_for("local") as target, target.worker() as worker, pytest.raises(ExecutionError, match="noise"):
            worker.open(tmp_path / f"noise{suffix}", name, Options())

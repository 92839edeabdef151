"""Distillation as it is used: teachers, places, one mechanism in every step that trains, resumed to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgekit import training
from edgekit.bundle import Bundle
from edgekit.compress.distill.loss import distillation_loss, pair
from edgekit.compress.distill.own_average import OwnAverage
from edgekit.compress.distill.settings import METHODS, Distillation
from edgekit.compress.distill.taps import before_head, named, shape, stage_ends, tapped
from edgekit.compress.distill.teacher import Teacher, load_teacher
from edgekit.compress.pipeline import compress
from edgekit.compress.step import make_step, parse_step
from edgekit.data.dataset import Dataset, to_inputs
from edgekit.data.preprocessing import Preprocessing
from edgekit.errors import EdgekitError, StepError, UsageError
from edgekit.evaluation import evaluate
from edgekit.program import export_program, layer_name, set_training, trainable
from edgekit.recipe import load_recipe, save_recipe
from edgekit.sources.load import load
from edgekit.testing import networks
from edgekit.training import TrainingSettings, WithTerm, train


class Small(torch.nn.Module):
    """A student of the digits that few images leave far from the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.BatchNorm2d(6)
        self.conv2, self.bn2 = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1), torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def _student(before: Bundle, seed: int = 0) -> Bundle:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        program = export_program(Small(), before.input_shape)
    return replace(before, program=program, source={"reference": "small"}, path=None, written=None)


@pytest.fixture(scope="module")
def few(data: Dataset) -> Dataset:
    """So few images that labels alone do not tell the whole."""
    return replace(data, train=data.train.part(data.train.spread(200)))


QUICK = "epochs=2,batch_size=64,learning_rate=0.02"


def test_a_small_student_learns_more_from_a_teacher_than_from_labels_alone(before: Bundle, few: Dataset) -> None:
    """Over the same budget, from the same start, with noisy labels that the teacher sees through; mean of two seeds."""
    random = np.random.default_rng(0)
    train_part = few.train.part(np.arange(len(few.train)))
    wrong = random.random(len(train_part)) < 0.4
    train_part.labels = np.where(wrong, random.integers(0, 10, len(train_part)), train_part.labels)
    noisy = replace(few, train=train_part)
    gains = []
    for seed in (0, 1):
        budget = "epochs=25,batch_size=32,learning_rate=0.05,keep=last"
        alone, taught = (
            compress(_student(before, seed), f"{step},{budget}", noisy, seed=seed)
            for step in ("finetune:label_smoothing=0", "distill:teacher=zoo:digits-cnn")
        )
        top1 = [evaluate(b.module(), few.validation, b.preprocessing).top1 for b in (alone, taught)]
        gains.append(top1[1] - top1[0])
    assert np.mean(gains) > 3, gains


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_its_own_loss_on_another_architecture(method: str, before: Bundle, data: Dataset) -> None:
    student = _student(before)
    module = student.module()
    loss = distillation_loss(Distillation(teacher=("zoo:digits-cnn",), method=method), module, student)  # type: ignore[arg-type]
    assert loss is not None
    x = torch.from_numpy(to_inputs(data.train.images(data.train.spread(96)), student.preprocessing))
    y = torch.from_numpy(data.train.labels[data.train.spread(96)])
    set_training(module, True)
    optimizer = torch.optim.Adam([*module.parameters(), *loss.parameters()], lr=0.01)
    values = []
    for _ in range(40):
        value, outputs = loss(module, x, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert outputs.shape == (96, 10)
    assert values[-1] < 0.85 * values[0]


def _interrupted(step: str, bundle: Bundle, data: Dataset, folder: Path, at: int) -> Bundle:
    def stop(done: int, total: int, text: str) -> None:
        if done == at and "validation" not in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(bundle, step, data, output=folder, progress=stop)
    told: list[str] = []
    again = compress(bundle, step, data, output=folder, progress=lambda done, total, text: told.append(text))
    assert any("resumed" in text for text in told)
    return again


@pytest.mark.parametrize(
    ("method", "teacher"),
    [("hints", "zoo:digits-cnn"), ("contrastive", "zoo:digits-cnn"), ("attention", "ema"), ("soft-targets", "ema")],
)
def test_resumed_to_the_bit_with_what_trains_along(
    method: str, teacher: str, before: Bundle, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regressors, embeddings and the moving average come back from the checkpoint, in the middle of an epoch."""
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0.0)
    step = f"distill:teacher={teacher},method={method},{QUICK}"
    whole = compress(_student(before), step, few)
    again = _interrupted(step, _student(before), few, tmp_path / "made", at=3)
    assert again.fingerprint == whole.fingerprint


def test_the_checkpoint_of_another_teacher_is_not_taken_up(before: Bundle, few: Dataset, tmp_path: Path) -> None:
    student, other = _student(before), compress(before, "finetune:epochs=1", few)
    settings = TrainingSettings(epochs=1)
    results = []
    for teacher in (before, before, other):
        module = student.module()
        loss = distillation_loss(0.5, module, student, before=teacher)
        results.append(train(module, few, student.preprocessing, settings, checkpoint=tmp_path, loss=loss))
    assert [result.resumed_at_step for result in results] == [0, 2, 0]


def test_a_pipeline_starts_again_where_the_teacher_file_has_changed(
    before: Bundle, few: Dataset, tmp_path: Path
) -> None:
    """Also where the step was done already and only a later one was stopped."""
    big = tmp_path / "big"
    before.save(big)
    steps = [f"distill:teacher={big},weight=1,{QUICK}", "finetune:epochs=1"]

    def stop(done: int, total: int, text: str) -> None:
        if total == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(_student(before), steps, few, output=tmp_path / "out", progress=stop)
    compress(before, "finetune:epochs=1", few).save(big)
    again = compress(_student(before), steps, few, output=tmp_path / "out")
    assert again.fingerprint == compress(_student(before), steps, few).fingerprint


def test_nothing_that_trained_along_is_delivered(before: Bundle, few: Dataset) -> None:
    student = _student(before)
    after = compress(student, f"distill:teacher=zoo:digits-cnn,method=contrastive,{QUICK}", few)
    assert set(after.program.state_dict) == set(student.program.state_dict)
    told = after.steps[-1]["report"]["distill"]
    assert told["teachers"] == [{"name": "zoo:digits-cnn", "fingerprint": before.fingerprint}]
    assert told["looked_into"] == [["mean", "flatten"]]
    assert (told["weight"], told["temperature"]) == (0.8, 0.07)


NESTED = "distill=[teacher=zoo:digits-cnn,method=attention,weight=10]"


@pytest.mark.parametrize(
    "step",
    [
        f"finetune:epochs=1,{NESTED}",
        f"prune-channels:macs=0.6,multiple=1,epochs=1,images=64,reconstruct=0,{NESTED}",
        f"qat:epochs=1,images=64,{NESTED}",
        f"sparse-train:epochs=1,{NESTED}",
        f"prune-weights:ramp=1,epochs=1,{NESTED}",
        f"powers-of-two:epochs=1,portions=[0.5,1],{NESTED}",
    ],
)
def test_every_step_that_trains_can_be_taught(step: str, before: Bundle, few: Dataset, tmp_path: Path) -> None:
    made = parse_step(step)
    save_recipe([made], tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == [made]
    taught = compress(before, made, few)
    alone = compress(before, replace(made, distill=0.0), few)  # type: ignore[call-arg]
    assert taught.fingerprint != alone.fingerprint
    assert "'distill'" in repr(taught.steps[-1]["report"])


def test_a_number_is_the_share_of_the_network_before() -> None:
    assert parse_step("finetune:distill=0.5").to_dict()["distill"] == 0.5
    nested = parse_step("finetune:distill=[teacher=a+b,weight=0.5]")
    assert nested.distill == Distillation(teacher=("a+b",), weight=0.5)  # type: ignore[attr-defined]
    assert nested.distill.references == ("a", "b")  # type: ignore[attr-defined]
    listed = make_step("finetune", {"distill": {"teacher": ["a", "b"], "weight": 0.5}})
    assert listed.distill.references == ("a", "b")  # type: ignore[attr-defined]


def test_the_loss_of_a_share(before: Bundle) -> None:
    """Share times the softened divergence and the rest of cross-entropy, by NumPy."""
    student = _student(before)
    module = student.module()
    loss = distillation_loss(0.3, module, student, before=before, label_smoothing=0.1)
    assert loss is not None
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    value, outputs = loss(module, x, y)
    z, t = outputs.detach().double().numpy(), before.module()(x).detach().double().numpy()
    p, q = (np.exp(a / 4) / np.exp(a / 4).sum(1, keepdims=True) for a in (t, z))
    log_q = z - np.log(np.exp(z).sum(1, keepdims=True))
    wanted = 0.9 * np.eye(10)[y] + 0.01
    expected = 0.3 * 16 * (p * np.log(p / q)).sum(1).mean() - 0.7 * (wanted * log_q).sum(1).mean()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)


def test_an_ensemble_is_the_mean_of_softened_outputs(before: Bundle, few: Dataset) -> None:
    other = compress(before, "finetune:epochs=1,learning_rate=0.1", few)
    x = torch.rand(8, 1, 8, 8)
    seen = Teacher([before, other], before, temperature=4.0)(x)
    with torch.no_grad():
        expected = torch.stack([F.softmax(b.module()(x) / 4, dim=1) for b in (before, other)]).mean(0)
    torch.testing.assert_close(F.softmax(seen.outputs / 4, dim=1), expected)


def test_a_teacher_with_another_normalization_is_shown_its_own(before: Bundle, data: Dataset) -> None:
    assert before.preprocessing is not None
    its = replace(before.preprocessing, scale=1.0, mean=(100.0,), std=(60.0,))
    teacher = replace(before, preprocessing=its)
    images = data.train.images(np.arange(16))
    seen = Teacher([teacher], before)(torch.from_numpy(before.preprocessing(images)))
    with torch.no_grad():
        expected = teacher.module()(torch.from_numpy(its(images)))
    torch.testing.assert_close(seen.outputs, expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_more_classes_is_asked_for_those_of_the_student(before: Bundle, data: Dataset) -> None:
    small = compress(before, "keep-classes:classes=[7,2,4]", data)
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(Teacher([before], small)(x).outputs, before.module()(x)[:, [2, 4, 7]])
    taught = compress(before, ["keep-classes:classes=[7,2,4]", f"distill:teacher=zoo:digits-cnn,{QUICK}"], data)
    assert taught.labels == ("2", "4", "7")


def test_the_moving_average_against_numpy(before: Bundle) -> None:
    """Tarvainen & Valpola, section 2, with their growing decay."""
    module = before.module()
    made = OwnAverage(module, ())
    expected: dict[str, np.ndarray] = {}
    for step in range(4):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * (step + 1)
        made.follow(module)
        decay = min(1 - 1 / (step + 1), 0.999)
        for name, value in module.named_parameters():
            now = value.detach().double().numpy()
            expected[name] = decay * expected.get(name, 0 * now) + (1 - decay) * now
    for name, value in made.average.named_parameters():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-5)
        assert not value.requires_grad


def test_what_the_moving_average_says_counts_little_at_first(before: Bundle, few: Dataset) -> None:
    """Tarvainen & Valpola, appendix B.1: exp(-5 (1 - t)^2)."""
    module = before.module()
    made = OwnAverage(module, ())
    assert made.trusted() == 1.0
    made.begin(100)
    trusted = []
    for _ in range(30):
        trusted.append(made.trusted())
        made.follow(module)
    np.testing.assert_allclose(trusted[:28], np.exp(-5 * (1 - np.minimum(np.arange(28) / 27, 1)) ** 2))
    assert trusted[27:] == [1.0] * 3
    # The training tells the loss, through whatever is around it.
    loss = distillation_loss(Distillation(teacher=("ema",)), module, before)
    assert loss is not None
    train(module, few, before.preprocessing, TrainingSettings(epochs=1), loss=WithTerm(loss, lambda: None))
    assert isinstance(loss.teacher, OwnAverage)
    assert loss.teacher.trusted() == 1.0
    loss.teacher.steps.zero_()
    assert loss.teacher.trusted() == pytest.approx(np.exp(-5))


@pytest.mark.parametrize("network", networks.FEATURES)
def test_a_tapped_graph_gives_the_same_and_trains_the_original(network: str) -> None:
    module = trainable(export_program(networks.make(network), networks.INPUT_SHAPE))
    places = [*stage_ends(module), before_head(module)]
    copy = tapped(module, [node.name for node in places])
    x = networks.images(4)
    outputs, *values = copy(x)
    torch.testing.assert_close(outputs, module(x), rtol=0, atol=0)
    assert [tuple(v.shape[1:]) for v in values] == [shape(node)[1:] for node in places]
    sum(v.square().mean() for v in (outputs, *values)).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_places_are_the_ends_of_stages_and_what_the_head_reads() -> None:
    module = load("zoo:resnet20-cifar").module()
    assert [shape(node)[1:] for node in stage_ends(module)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [layer_name(node).split()[0] for node in stage_ends(module)] == ["layer1.2", "layer2.2", "layer3.2"]
    assert shape(before_head(module)) == (-1, 64)
    # A module's name is what comes out of it; patterns stand for all that they match.
    assert named(module, ["layer?"], "x") == stage_ends(module)
    assert named(module, ["layer2", "layer1.0.conv1"], "x")[1].target is torch.ops.aten.conv2d.default


def test_pairs_go_by_resolution_or_by_name() -> None:
    student = trainable(export_program(networks.make("residual"), networks.INPUT_SHAPE))
    teacher = trainable(export_program(networks.make("plain"), networks.INPUT_SHAPE))
    pairs = pair(Distillation(method="attention"), "stages", student, teacher)
    assert [(shape(a)[2:], shape(b)[2:]) for a, b in pairs] == [((16, 16), (16, 16)), ((8, 8), (8, 8))]
    assert len(pair(Distillation(method="hints"), "middle", student, teacher)) == 1
    named_ones = Distillation(method="attention", layers=("conv2",), teacher_layers=("bn1",))
    ((ours, theirs),) = pair(named_ones, "stages", student, teacher)
    assert (layer_name(ours), layer_name(theirs)) == ("conv2", "bn1")
    with pytest.raises(UsageError, match="1 places of the network and 2"):
        pair(Distillation(method="attention", layers=("conv2",), teacher_layers=("bn?",)), "stages", student, teacher)
    with pytest.raises(UsageError, match="can't compare"):
        pair(Distillation(method="hints", layers=("conv2",), teacher_layers=("head",)), "middle", student, teacher)
    with pytest.raises(UsageError, match="no layer 'conv9'"):
        pair(Distillation(method="hints", layers=("conv9",)), "middle", student, teacher)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill:method=hints", "needs the setting 'teacher'"),
        ("distill:teacher=", "name a teacher"),
        ("distill:teacher=before+zoo:digits-cnn", "teach alone"),
        ("distill:teacher=before,weight=1.5", "at most 1"),
        ("distill:teacher=before,weight=0", "above 0"),
        ("distill:teacher=before,temperature=-1", "above 0"),
        ("distill:teacher=before,method=magic", "not one of soft-targets"),
        ("distill:teacher=before,layers=[conv1]", "outputs alone"),
        ("finetune:distill=1.5", "between 0 and 1"),
        ("finetune:distill=[method=magic]", "not one of soft-targets"),
        ("finetune:distill=[colour=red]", "no setting 'colour'"),
        ("finetune:distill=big", "no number"),
        ("sparse-train:distill=-1", "between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_step(text)


def _teacher(before: Bundle, **changes: Any) -> Bundle:
    return replace(before, path=None, **changes)


def test_teachers_that_do_not_fit_are_refused_with_a_remedy(before: Bundle, few: Dataset, tmp_path: Path) -> None:
    assert before.preprocessing is not None
    plain = Bundle(export_program(networks.make("plain"), networks.INPUT_SHAPE), networks.INPUT_SHAPE)
    cases = [
        (plain, r"\(3, 16, 16\)"),
        (_teacher(before, labels=tuple("abcdefghij")), "no output for 0, 1, 2, 3, 4"),
        (_teacher(before, preprocessing=Preprocessing(size=(9, 9), color="gray")), "size"),
        (_teacher(before, preprocessing=None), "not known"),
        (compress(replace(before, labels=()), "keep-classes:classes=[1,2]", few), "no output for"),
    ]
    for bundle, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            Teacher([bundle], before)
        assert caught.value.remedy
    unnamed = replace(compress(before, "keep-classes:classes=[1,2]", few), labels=())
    with pytest.raises(UsageError, match="2 outputs and the network 10"):
        Teacher([unnamed], before)
    with pytest.raises(UsageError, match="random weights") as caught:
        load_teacher("zoo:resnet20-cifar", before)
    assert "zoo:resnet20-cifar@FILE" in caught.value.remedy
    with pytest.raises(UsageError, match="the teacher 'nowhere'"):
        compress(before, "distill:teacher=nowhere,epochs=1", few)
    with pytest.raises(UsageError, match="the teacher 'nowhere'"):
        parse_step("prune-channels:macs=0.5,distill=[teacher=nowhere]").requires(before)
    with pytest.raises(UsageError, match="looks into one teacher"):
        compress(before, "distill:teacher=zoo:digits-cnn+zoo:digits-cnn,method=hints,epochs=1", few)


def test_a_teacher_with_its_weights_in_a_file(before: Bundle, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in load("zoo:resnet20-cifar").module().state_dict().items()}, file)
    cifar = load("zoo:resnet20-cifar")
    found = load_teacher(f"zoo:resnet20-cifar@{file}", cifar)
    assert found.fingerprint == cifar.fingerprint
    assert Distillation(teacher=(f"zoo:resnet20-cifar@{file}",)).files() == (file,)


def test_a_network_without_layers_can_learn_from_outputs_alone(before: Bundle) -> None:
    class Bare(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10]

    module = trainable(export_program(Bare(), before.input_shape))
    with pytest.raises((StepError, EdgekitError), match="no convolution or linear layer"):
        stage_ends(module)


def test_bfloat16_computes_the_methods_in_float32(before: Bundle) -> None:
    student = _student(before)
    module = student.module()
    loss = distillation_loss(Distillation(teacher=("zoo:digits-cnn",), method="relational"), module, student)
    assert loss is not None
    types: list[torch.dtype] = []
    loss.method.register_forward_pre_hook(lambda _, given: types.extend(v.dtype for s in given[:2] for v in s.features))
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    exact, _ = loss(module, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        value, outputs = loss(module, x, y)
    assert set(types) == {torch.float32}
    assert value.dtype == outputs.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_a_quantized_network_can_teach(before: Bundle, few: Dataset, tmp_path: Path) -> None:
    compress(before, "quantize:images=64", few, output=tmp_path / "int8")
    teacher = load_teacher(str(tmp_path / "int8"), before)
    x = torch.from_numpy(to_inputs(few.train.images(np.arange(16)), before.preprocessing))
    with torch.no_grad():
        torch.testing.assert_close(Teacher([teacher], before)(x).outputs, teacher.module()(x))
    taught = compress(_student(before), f"distill:teacher={tmp_path / 'int8'},method=attention,{QUICK}", few)
    assert len(taught.steps[-1]["report"]["distill"]["looked_into"]) == 2

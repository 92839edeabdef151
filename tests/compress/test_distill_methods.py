"""Each method against a reference in NumPy, float64, written from the paper's equations alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgekit.compress.distill.attention import Attention
from edgekit.compress.distill.contrastive import Contrastive
from edgekit.compress.distill.decoupled import Decoupled
from edgekit.compress.distill.hints import Hints
from edgekit.compress.distill.method import Method, Seen, method_class
from edgekit.compress.distill.relational import Relational
from edgekit.compress.distill.settings import METHODS
from edgekit.compress.distill.soft_targets import SoftTargets

N, CLASSES = 9, 5
# Float32 sums of a few thousand terms against float64.
CLOSE = 2e-5


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


Y = torch.tensor([0, 1, 2, 3, 4, 0, 1, 1, 3])
STUDENT, TEACHER = Seen(_random(N, CLASSES, seed=1)), Seen(_random(N, CLASSES, seed=2))


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * np.log(p / q)))


def _f64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets(temperature: float) -> None:
    """Hinton et al., section 2: T² times the divergence of the softened outputs."""
    p, q = (_softmax(_f64(z.outputs) / temperature) for z in (TEACHER, STUDENT))
    expected = temperature**2 * np.mean([_divergence(a, b) for a, b in zip(p, q, strict=True)])
    found = SoftTargets(temperature=temperature)(STUDENT, TEACHER, Y)
    assert float(found.detach()) == pytest.approx(expected, rel=CLOSE)


def test_decoupled_and_that_its_parts_make_up_the_whole() -> None:
    """Zhao et al., equations 4 to 7; equation 6: KL = TCKD + (1 − p) NCKD."""
    t = 4.0
    total, whole = 0.0, 0.0
    for i, y in enumerate(Y.tolist()):
        p, q = (_softmax(_f64(z.outputs)[i] / t) for z in (TEACHER, STUDENT))
        both = [np.array([a[y], 1 - a[y]]) for a in (p, q)]
        others = [np.delete(a, y) / (1 - a[y]) for a in (p, q)]
        target, rest = _divergence(*both), _divergence(*others)
        assert target + (1 - p[y]) * rest == pytest.approx(_divergence(p, q))
        total += t**2 * (1.0 * target + 2.0 * rest) / N
        whole += target
    assert float(Decoupled()(STUDENT, TEACHER, Y)) == pytest.approx(total, rel=CLOSE)


def test_hints_through_a_regressor_at_the_coarser_resolution() -> None:
    """Romero et al., equation 3, as a mean over the elements."""
    ours, theirs = _random(N, 3, 8, 8, seed=3), _random(N, 6, 4, 4, seed=4)
    made = Hints([((-1, 3, 8, 8), (-1, 6, 4, 4))])
    (regressor,) = made.regressors
    torch.nn.init.normal_(regressor.scale, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(regressor.shift, generator=torch.Generator().manual_seed(1))
    weight = _f64(regressor.layer.weight)[:, :, 0, 0]
    pooled = _f64(ours).reshape(N, 3, 4, 2, 4, 2).mean((3, 5))
    regressed = np.einsum("oc,nchw->nohw", weight, pooled)
    mean, spread = (f(regressed, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    regressed = (regressed - mean) / np.sqrt(spread + 1e-5)
    regressed = regressed * _f64(regressor.scale)[:, None, None] + _f64(regressor.shift)[:, None, None]
    expected = ((regressed - _f64(theirs)) ** 2).mean()
    found = made(Seen(STUDENT.outputs, (ours,)), Seen(TEACHER.outputs, (theirs,)), Y)
    assert float(found.detach()) == pytest.approx(expected, rel=CLOSE)


def test_attention() -> None:
    """Zagoruyko & Komodakis, equation 2: Q = vec(Σ_c A_c²), normalized; squared distances."""
    ours = (_random(N, 3, 8, 8, seed=5), _random(N, 4, 4, 4, seed=6))
    theirs = (_random(N, 5, 8, 8, seed=7), _random(N, 7, 2, 2, seed=8))
    expected = 0.0
    for a, b in zip(map(_f64, ours), map(_f64, theirs), strict=True):
        if a.shape[2:] != b.shape[2:]:
            a = a.reshape(N, 4, 2, 2, 2, 2).mean((3, 5))
        for i in range(N):
            q, p = ((x[i] ** 2).sum(0).reshape(-1) for x in (a, b))
            q, p = q / np.sqrt((q**2).sum()), p / np.sqrt((p**2).sum())
            expected += ((q - p) ** 2).sum() / len(q) / N
    found = Attention()(Seen(STUDENT.outputs, ours), Seen(TEACHER.outputs, theirs), Y)
    assert float(found.detach()) == pytest.approx(expected, rel=CLOSE)


def test_relational() -> None:
    """Park et al., equations 5 to 9: Huber of distances over their mean, and of cosines at each vertex."""
    ours, theirs = _random(N, 6, seed=9), _random(N, 4, 3, 3, seed=10)
    a, b = _f64(ours), _f64(theirs).mean((2, 3))

    def huber(x: float) -> float:
        return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5

    def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
        e, f = (x[other] - x[j] for other in (i, k))
        return float(e @ f / np.sqrt((e @ e) * (f @ f)))

    pairs = list(itertools.permutations(range(N), 2))
    spread = [np.mean([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (a, b)]
    distance = np.mean(
        [huber(np.linalg.norm(a[i] - a[j]) / spread[0] - np.linalg.norm(b[i] - b[j]) / spread[1]) for i, j in pairs]
    )
    triplets = list(itertools.permutations(range(N), 3))
    angle = np.mean([huber(cosine(a, *t) - cosine(b, *t)) for t in triplets])
    found = Relational()(Seen(STUDENT.outputs, (ours,)), Seen(TEACHER.outputs, (theirs,)), Y)
    assert float(found.detach()) == pytest.approx(25 * distance + 50 * angle, rel=CLOSE)


def test_contrastive() -> None:
    """InfoNCE (van den Oord et al., equation 4), both ways; images of the same class are no negatives."""
    ours, theirs = _random(N, 6, seed=11), _random(N, 4, 2, 2, seed=12)
    made = Contrastive([((-1, 6), (-1, 4, 2, 2))])
    embedded = []
    for values, (layer,) in ((_f64(ours), made.students), (_f64(theirs).mean((2, 3)), made.teachers)):
        z = values @ _f64(layer.weight).T + _f64(layer.bias)
        assert z.shape == (N, 128)
        embedded.append(z / np.sqrt((z**2).sum(1, keepdims=True)))
    score = np.exp(embedded[0] @ embedded[1].T / 0.07)
    expected = 0.0
    for i, j in itertools.product(range(N), range(2)):
        row = score[i] if j == 0 else score[:, i]
        negatives = [row[k] for k in range(N) if Y[k] != Y[i]]
        expected -= np.log(row[i] / (row[i] + sum(negatives))) / N
    found = made(Seen(STUDENT.outputs, (ours,)), Seen(TEACHER.outputs, (theirs,)), Y)
    assert float(found.detach()) == pytest.approx(expected, rel=CLOSE)


def _seen(method: type[Method], seed: int, count: int) -> Seen:
    shapes = {"outputs": (), "stages": ((3, 8, 8), (4, 4, 4)), "middle": ((3, 8, 8),), "embedding": ((6,),)}
    features = tuple(_random(count, *s, seed=seed + i).requires_grad_() for i, s in enumerate(shapes[method.looks_at]))
    return Seen(_random(count, CLASSES, seed=seed + 9).requires_grad_(), features)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [N, 2, 1])
def test_the_gradient_reaches_student_and_parameters_and_is_finite(name: str, count: int) -> None:
    """Also for batches of two and of one, which the end of an epoch may hold."""
    kind = method_class(name)
    student, teacher = _seen(kind, 20, count), _seen(kind, 40, count)
    made = kind(
        [
            ((-1, *a.shape[1:]), (-1, *b.shape[1:]))
            for a, b in zip(*[s.features for s in (student, teacher)], strict=True)
        ]
    )
    value = made(student, Seen(teacher.outputs.detach(), tuple(f.detach() for f in teacher.features)), Y[:count])
    assert value.isfinite()
    value.backward()
    reached = student.features or (student.outputs,)
    gradients = [t.grad for t in (*reached, *made.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    if count == N:
        assert all(bool(g.abs().sum() > 0) for g in gradients if g is not None)


@pytest.mark.parametrize("name", ["soft-targets", "decoupled", "attention", "relational"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    kind = method_class(name)
    seen = _seen(kind, 60, N)
    value = kind()(seen, Seen(seen.outputs.detach(), tuple(f.detach() for f in seen.features)), Y)
    assert float(value) == pytest.approx(0, abs=1e-5)


def test_images_that_repeat_do_not_break_relations() -> None:
    values = _random(1, 6, seed=70).expand(4, 6).clone().requires_grad_()
    value = Relational()(Seen(STUDENT.outputs[:4], (values,)), Seen(STUDENT.outputs[:4], (values.detach(),)), Y[:4])
    value.backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())

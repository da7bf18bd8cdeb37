from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from sscl.losses import focal_loss, nt_xent, nt_xent_at_collapse

# Golden values for a = sin(1..12), b = cos(1..12) as (4, 3): computed twice, independently, in float64.
GOLDEN = {0.7: 2.1876834088698316, 0.5: 2.486873383607603, 0.1: 9.825555830191218, 0.07: 14.033745029042509}
GOLDEN_GRAD_A0 = [-0.138369463664745, 0.091267551738384, 0.236993600966073]  # good to 1e-10: sum(grad * a) is -3e-11
PRECISE_GRAD_A0 = [-0.13836946362403535, 0.09126755173900921, 0.23699360093508819]  # 40-digit arithmetic


def golden_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    steps = torch.arange(1, 13, dtype=torch.float64)
    return steps.sin().reshape(4, 3), steps.cos().reshape(4, 3)


def random_pair(count: int = 7, dim: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, count, dim, generator=generator, dtype=torch.float64))


def naive_nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> float:
    """The paper's Eq. 1, written out term by term."""
    rows = [r / r.norm() for r in [*a, *b]]
    count, total = len(a), 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        others = sum(math.exp(float(rows[i] @ rows[k]) / temperature) for k in range(2 * count) if k != i)
        total -= math.log(math.exp(float(rows[i] @ rows[j]) / temperature) / others)
    return total / (2 * count)


@pytest.mark.parametrize(("temperature", "expected"), GOLDEN.items())
def test_nt_xent_golden(temperature, expected):
    a, b = golden_inputs()
    assert nt_xent(a, b, temperature=temperature).item() == pytest.approx(expected, abs=1e-12)
    assert naive_nt_xent(a, b, temperature) == pytest.approx(expected, abs=1e-12)


def test_nt_xent_golden_gradient():
    a, b = golden_inputs()
    a.requires_grad_()
    nt_xent(a, b).backward()
    assert a.grad[0].tolist() == pytest.approx(PRECISE_GRAD_A0, abs=1e-15)
    assert a.grad[0].tolist() == pytest.approx(GOLDEN_GRAD_A0, abs=1e-10)


def test_nt_xent_is_not_the_cross_view_loss():
    a, b = golden_inputs()
    assert abs(nt_xent(a, b).item() - 1.462548036834) > 0.5


def test_nt_xent_equals_pytorch_metric_learning():
    a, b = random_pair()
    labels = torch.arange(7).repeat(2)
    for temperature in (0.7, 0.1):
        theirs = NTXentLoss(temperature=temperature)(torch.cat([a, b]), labels)
        assert nt_xent(a, b, temperature=temperature).item() == pytest.approx(theirs.item(), abs=1e-9)


@pytest.mark.parametrize("pairs", [2, 3, 8])
def test_collapse_gives_log_of_the_negatives(pairs):
    same = torch.ones(pairs, 4, dtype=torch.float64)
    assert nt_xent(same, same).item() == pytest.approx(math.log(2 * pairs - 1), abs=1e-12)
    assert nt_xent_at_collapse(pairs) == math.log(2 * pairs - 1)


@pytest.mark.parametrize(
    ("pairs", "expected"), [(2, 0.3915704041748233), (4, 0.8911395638100592), (8, 1.4713509039162744)]
)
def test_orthonormal_pairs(pairs, expected):
    eye = torch.eye(pairs, dtype=torch.float64)
    assert nt_xent(eye, eye).item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(math.log(math.exp(1 / 0.7) + 2 * pairs - 2) - 1 / 0.7, abs=1e-12)


def test_opposite_and_flipped_identity():
    eye = torch.eye(2, dtype=torch.float64)
    assert nt_xent(eye, -eye).item() == pytest.approx(2.2348914949994962, abs=1e-12)
    assert nt_xent(eye, eye.flip(0)).item() == pytest.approx(1.8201418327462526, abs=1e-12)


def test_one_pair_has_no_loss_and_no_gradient():
    a, b = random_pair(1)
    a.requires_grad_()
    loss = nt_xent(a, b)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert a.grad.abs().max() < 1e-12


def test_invariances():
    a, b = random_pair()
    loss = nt_xent(a, b).item()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    rotation, _ = torch.linalg.qr(random_pair(5, 5, seed=2)[0])
    scales = torch.rand(7, 1, dtype=torch.float64) + 0.1
    for other in (
        nt_xent(b, a),
        nt_xent(a[order], b[order]),
        nt_xent(a @ rotation, b @ rotation),
        nt_xent(a * scales, b),
    ):
        assert other.item() == pytest.approx(loss, abs=1e-12)


def test_gradient_is_tangent_and_passes_gradcheck():
    a, b = (x.requires_grad_() for x in random_pair(4, 3))
    assert torch.autograd.gradcheck(lambda x, y: nt_xent(x, y, temperature=0.3), (a, b))
    nt_xent(a, b).backward()
    assert ((a.grad * a).sum(1).abs() < 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_inputs_stay_finite(dtype):
    for a, b in ([x.to(dtype) for x in random_pair()], [torch.zeros(4, 3, dtype=dtype)] * 2):
        a = a.clone().requires_grad_()
        loss = nt_xent(a, b, temperature=0.005)
        loss.backward()
        assert loss.isfinite()
        assert a.grad.isfinite().all()
        assert loss.dtype == torch.float32


def test_autocast_does_not_lower_the_precision():
    a, b = (x.float() for x in random_pair(64, 32))
    plain = nt_xent(a, b, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent(a, b, temperature=0.05).item() == plain.item()


def test_nt_xent_refuses_wrong_input():
    with pytest.raises(ValueError, match=r"must both be \(B, D\), got \(2, 3\) and \(3, 3\)"):
        nt_xent(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        nt_xent(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, labels = random_pair(20, 3)[0], torch.arange(20) % 3
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())).float()
    logits = logits.float()
    assert focal_loss(logits, labels, gamma=0).item() == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-6)
    theirs = cross_entropy(logits, labels, weight=weight).item()
    assert focal_loss(logits, labels, gamma=0, weight=weight).item() == pytest.approx(theirs, abs=1e-6)


def test_focal_loss_against_the_formula():
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0])
    expected = [-((1 - p) ** 2) * math.log(p) for p in (1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3)))]
    assert focal_loss(logits, labels, gamma=2).item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    with pytest.raises(ValueError, match="gamma must be >= 0, got -1"):
        focal_loss(logits, labels, gamma=-1)

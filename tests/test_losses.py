from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy, normalize

from sscl import losses
from sscl.losses import cross_view_at_collapse, cross_view_info_nce, focal_loss, nt_xent, nt_xent_at_collapse

NTXentLoss = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss

# Golden values for a = sin(1..12), b = cos(1..12) as (4, 3): computed twice, independently, in float64.
GOLDEN = {0.7: 2.1876834088698316, 0.5: 2.486873383607603, 0.1: 9.825555830191218, 0.07: 14.033745029042509}
GOLDEN_GRAD_A0 = [-0.138369463664745, 0.091267551738384, 0.236993600966073]  # good to 1e-10: sum(grad * a) is -3e-11
PRECISE_GRAD_A0 = [-0.13836946362403535, 0.09126755173900921, 0.23699360093508819]  # 40-digit arithmetic
GOLDEN_CROSS_VIEW = 1.462548036834  # at 0.7; good to 1e-11
PRECISE_CROSS_VIEW = 1.4625480368358436  # 40-digit arithmetic
BOTH = pytest.mark.parametrize("loss_of", [nt_xent, cross_view_info_nce])


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


def naive_cross_view(a: torch.Tensor, b: torch.Tensor, temperature: float) -> list[float]:
    """Each tile's loss, written out term by term: from a to all of b, from b to all of a."""
    a, b = ([row / row.norm() for row in x] for x in (a, b))
    tiles = []
    for i in range(len(a)):
        forth = [math.exp(float(a[i] @ other) / temperature) for other in b]
        back = [math.exp(float(b[i] @ other) / temperature) for other in a]
        tiles.append(-(math.log(forth[i] / sum(forth)) + math.log(back[i] / sum(back))) / 2)
    return tiles


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
    assert abs(nt_xent(a, b).item() - GOLDEN_CROSS_VIEW) > 0.5


def test_cross_view_golden():
    a, b = golden_inputs()
    assert cross_view_info_nce(a, b, temperature=0.7).item() == pytest.approx(PRECISE_CROSS_VIEW, abs=1e-14)
    assert cross_view_info_nce(a, b, temperature=0.7).item() == pytest.approx(GOLDEN_CROSS_VIEW, abs=1e-11)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 0.7])
def test_cross_view_against_the_formula(temperature):
    a, b = random_pair()
    expected = naive_cross_view(a, b, temperature)
    assert cross_view_info_nce(a, b, temperature=temperature, reduction="none").tolist() == pytest.approx(expected)
    assert cross_view_info_nce(a, b, temperature=temperature).item() == pytest.approx(sum(expected) / 7, abs=1e-12)


def test_cross_view_is_the_mean_of_two_classifications():
    a, b = (torch.nn.functional.normalize(x) for x in random_pair())
    logits, own = a @ b.T / 0.3, torch.arange(7)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    assert cross_view_info_nce(a, b, temperature=0.3).item() == pytest.approx(expected.item(), abs=1e-12)


def test_nt_xent_of_each_tile():
    """Tile i's loss is the mean of its two rows' terms of Eq. 1."""
    a, b = random_pair()
    rows = torch.cat([a, b])
    rows = rows / rows.norm(dim=1, keepdim=True)
    similarity = (rows @ rows.T / 0.7).fill_diagonal_(-math.inf)
    terms = [cross_entropy(similarity[i], torch.tensor((i + 7) % 14)).item() for i in range(14)]
    expected = [(terms[i] + terms[i + 7]) / 2 for i in range(7)]
    assert nt_xent(a, b, reduction="none").tolist() == pytest.approx(expected, abs=1e-12)


@BOTH
def test_the_mean_of_the_tiles_is_the_mean_loss(loss_of):
    a, b = (x.requires_grad_() for x in random_pair())
    tiles = loss_of(a, b, reduction="none")
    assert tiles.shape == (7,)
    assert tiles.mean().item() == pytest.approx(loss_of(a, b).item(), abs=1e-14)
    (each,), (mean,) = (torch.autograd.grad(x, a) for x in (tiles.mean(), loss_of(a, b)))
    assert torch.allclose(each, mean, atol=1e-15)


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
    assert cross_view_info_nce(same, same).item() == pytest.approx(math.log(pairs), abs=1e-12)
    assert cross_view_at_collapse(pairs) == math.log(pairs)


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


@BOTH
def test_one_pair_has_no_loss_and_no_gradient(loss_of):
    a, b = random_pair(1)
    a.requires_grad_()
    loss = loss_of(a, b)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert a.grad.abs().max() < 1e-12


@BOTH
@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.1, 0.7])
def test_float32_keeps_its_digits_near_zero_loss(loss_of, temperature):
    """Far below the resolution of a log-sum-exp, which is about 1e-7 / temperature, and never below zero."""
    a = torch.eye(6, 8, dtype=torch.float64) + 0.01 * random_pair(6, 8)[0]
    b = torch.eye(6, 8, dtype=torch.float64) + 0.01 * random_pair(6, 8)[1]
    found = []
    for dtype in (torch.float32, torch.float64):
        view = a.detach().to(dtype).requires_grad_()
        loss = loss_of(view, b.to(dtype), temperature=temperature)
        loss.backward()
        found.append((loss.double(), view.grad.double()))
    (loss, gradient), (expected, expected_gradient) = found
    assert loss > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert relative_error(gradient, expected_gradient) < 1e-4


@BOTH
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
def test_a_pair_alone_has_exactly_no_loss_in_float32(loss_of, temperature):
    for seed in range(20):
        a, b = (x.float().requires_grad_() for x in random_pair(1, seed=seed))
        loss = loss_of(a, b, temperature=temperature)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(a.grad, torch.zeros_like(a))


@BOTH
def test_rows_of_zeros_get_no_gradient_and_the_others_theirs(loss_of):
    a, b = (x.half() for x in random_pair())
    a[2] = 0
    a.requires_grad_()
    loss_of(a, b).backward()
    assert torch.equal(a.grad[2], torch.zeros(a.shape[1], dtype=torch.float16))
    assert a.grad.isfinite().all()
    assert (a.grad[[0, 1, 3]] != 0).any(1).all()


@BOTH
def test_invariances(loss_of):
    a, b = random_pair()
    loss = loss_of(a, b).item()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    rotation, _ = torch.linalg.qr(random_pair(5, 5, seed=2)[0])
    scales = torch.rand(7, 1, dtype=torch.float64) + 0.1
    for other in (
        loss_of(b, a),
        loss_of(a[order], b[order]),
        loss_of(a @ rotation, b @ rotation),
        loss_of(a * scales, b),
    ):
        assert other.item() == pytest.approx(loss, abs=1e-12)


@BOTH
def test_gradient_is_tangent_and_passes_gradcheck(loss_of):
    a, b = (x.requires_grad_() for x in random_pair(4, 3))
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(lambda x, y, r=reduction: loss_of(x, y, temperature=0.3, reduction=r), (a, b))
    loss_of(a, b).backward()
    assert ((a.grad * a).sum(1).abs() < 1e-12).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_inputs_stay_finite(dtype, loss_of):
    for a, b in ([x.to(dtype) for x in random_pair()], [torch.zeros(4, 3, dtype=dtype)] * 2):
        a = a.clone().requires_grad_()
        loss = loss_of(a, b, temperature=0.005)
        loss.backward()
        assert loss.isfinite()
        assert a.grad.isfinite().all()
        assert loss.dtype == torch.float32


@BOTH
def test_autocast_does_not_lower_the_precision(loss_of):
    a, b = (x.float() for x in random_pair(64, 32))
    plain = loss_of(a, b, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_of(a, b, temperature=0.05).item() == plain.item()


@BOTH
def test_wrong_input_is_refused(loss_of):
    name = loss_of.__name__
    with pytest.raises(ValueError, match=rf"{name}: .* must both be \(B, D\), got \(2, 3\) and \(3, 3\)"):
        loss_of(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=f"{name}: temperature must be > 0, got 0"):
        loss_of(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)
    with pytest.raises(ValueError, match=f"{name}: reduction must be mean or none, got 'sum'"):
        loss_of(torch.zeros(2, 3), torch.zeros(2, 3), reduction="sum")


def dense(a: torch.Tensor, b: torch.Tensor, *, temperature: float, cross_view: bool = False) -> torch.Tensor:
    """Each tile's loss from the whole matrix of similarities at once, by torch's own cross-entropy."""
    a, b = normalize(a, dim=1), normalize(b, dim=1)
    rows, own = torch.cat([a, b]), torch.arange(len(a))
    if cross_view:
        logits = a @ b.T / temperature
        terms = cross_entropy(torch.cat([logits, logits.T]), own.repeat(2), reduction="none")
    else:
        logits = (rows @ rows.T / temperature).masked_fill(torch.eye(len(rows)).bool(), -math.inf)
        terms = cross_entropy(logits, torch.cat([own + len(a), own]), reduction="none")
    return terms.reshape(2, -1).mean(0)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@BOTH
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rows", [1, 7, 61, 1000])  # of 122 anchors, or twice 61: uneven, exact, and one block
def test_blocks_equal_the_whole_matrix(loss_of, dtype, error, rows, number):
    """Values and gradients, with another weight on each tile's loss."""
    pairs = 61
    candidates = pairs if loss_of is cross_view_info_nce else 2 * pairs
    number(loss_bytes=rows * candidates * dtype.itemsize + 1)
    a, b = (x.to(dtype).requires_grad_() for x in random_pair(pairs, 16))
    weights = random_pair(pairs, 1)[0][:, 0].to(dtype)
    ours = loss_of(a, b, temperature=0.1, reduction="none")
    theirs = dense(a, b, temperature=0.1, cross_view=loss_of is cross_view_info_nce)
    assert relative_error(ours, theirs) < error
    gradients = [torch.autograd.grad((weights * x).sum(), (a, b)) for x in (ours, theirs)]
    for our_gradient, their_gradient in zip(*gradients, strict=True):
        assert relative_error(our_gradient, their_gradient) < error


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_rows_against_other_candidates(columns, number):
    """What one of several ranks does: fewer anchors than candidates, each with columns anywhere that do not count."""
    number(loss_bytes=2 * 11 * 8)
    anchors, candidates = random_pair(5, 4)[0].requires_grad_(), random_pair(11, 4)[1].requires_grad_()
    left_out = torch.tensor([[3, 9], [4, 8], [5, 7], [0, 1], [10, 6]])[:, :columns]
    products = (anchors @ candidates.T).scatter(1, left_out, -math.inf)
    expected = products.logsumexp(1)
    ours = losses._logsumexp_of_products(anchors, candidates, left_out)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-14)
    weights = torch.arange(1.0, 6.0).double()
    gradients = [torch.autograd.grad((weights * x).sum(), (anchors, candidates)) for x in (ours, expected)]
    assert all(torch.allclose(x, y, rtol=0, atol=1e-14) for x, y in zip(*gradients, strict=True))
    torch.library.opcheck(losses._logsumexp_of_products, (anchors, candidates, left_out))


@BOTH
def test_autocast_around_backward_changes_nothing(loss_of):
    a, b = (x.float().requires_grad_() for x in random_pair(16, 8))
    (plain,) = torch.autograd.grad(loss_of(a, b), a)
    loss = loss_of(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (within,) = torch.autograd.grad(loss, a)
    assert torch.equal(plain, within)


def peak_bytes(run, trace: Path) -> int:
    """Most bytes that torch held at a time during a call, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    events.sort(key=lambda e: e["ts"])
    first = events[0]["args"]
    return max(e["args"]["Total Allocated"] for e in events) - (first["Total Allocated"] - first["Bytes"])


@BOTH
def test_memory_grows_with_the_batch_and_not_with_its_square(loss_of, number, tmp_path):
    number(loss_bytes=2**20)
    for pairs in (512, 1024):
        a, b = (x.float().requires_grad_() for x in random_pair(pairs, 16))
        cross_view = loss_of is cross_view_info_nce
        ours = peak_bytes(lambda x=a, y=b: loss_of(x, y, temperature=0.5).backward(), tmp_path / "ours.json")
        whole = peak_bytes(
            lambda x=a, y=b, c=cross_view: dense(x, y, temperature=0.5, cross_view=c).mean().backward(),
            tmp_path / "whole.json",
        )
        rows_bytes = 2 * pairs * 16 * 4
        matrix_bytes = (pairs if cross_view else 2 * pairs) ** 2 * 4
        assert whole > matrix_bytes  # so this would see it
        assert ours < 2**20 + 12 * rows_bytes, (ours, whole)


def test_compiles_into_one_graph():
    a, b = (x.float().requires_grad_() for x in random_pair(6, 4))

    def step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sum(f(a, b, temperature=0.3, reduction="none").square().sum() for f in (nt_xent, cross_view_info_nce))

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")  # the graphs alone: C++ takes half a minute
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = compiled(a, b)
    ours = step(a, b)
    assert relative_error(theirs, ours) < 1e-6
    for x, y in zip(torch.autograd.grad(theirs, (a, b)), torch.autograd.grad(ours, (a, b)), strict=True):
        assert relative_error(x, y) < 1e-5


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
    ours, theirs = (logits.clone().double().requires_grad_() for _ in range(2))
    focal_loss(ours, labels, gamma=2).backward()
    p = theirs.softmax(1)[:, 0]
    (-((1 - p) ** 2) * p.log()).mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="gamma must be >= 0, got -1"):
        focal_loss(logits, labels, gamma=-1)

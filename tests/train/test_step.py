"""The contrastive step against plain autograd: gradient caching, running statistics, one compiled graph."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sscl.draws import Augmentation
from sscl.losses import cross_view_info_nce, nt_xent
from sscl.models.batch_norm import keep_batch_statistics
from sscl.models.encoders import build_encoder
from sscl.models.heads import ContrastiveModel, build_projection
from sscl.train import step
from sscl.train.optim import build_optimizer, parameter_groups
from sscl.train.step import ContrastiveStep, ViewProjections, Views

N, SIZE_PX = 12, 16


def views_of(**changes: object) -> Views:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    return Views(augmentation=Augmentation(**changes), seed=3, mean=mean, std=std, size_px=SIZE_PX)


def batch(
    rows: slice = slice(0, N), *, later: int = 0, views: Views | None = None, device: str = "cpu"
) -> tuple[torch.Tensor, step.Drawn]:
    """Tiles and the parameters of their views, `later` epochs and views on."""
    images = np.random.default_rng(0).integers(0, 256, (N, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    tiles, number = 7 * torch.arange(N) + later, 2 * (torch.arange(N) % 3) + 2 * later
    found = (torch.from_numpy(images)[rows], tiles[rows], number[rows], torch.tensor(4 + later))
    pixels, tiles, number, epoch = (x.to(device) for x in found)
    return pixels, (views or views_of()).batch(tiles, number, epoch=epoch)


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small net with batch norm in both parts, whose statistics are not those of the start."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.BatchNorm1d(8, momentum=0.3),
    )
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return Double(model).to(dtype)


class Double(nn.Module):
    """Views are float32; this net takes them in its own number format."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(next(self.parameters()).dtype))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", [nt_xent, cross_view_info_nce])
@pytest.mark.parametrize("microbatch", [1, 4, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_cached_gradient_is_the_whole_batchs(loss, microbatch, dtype, tolerance):
    found, expected = net(dtype), net(dtype)
    for model in (found, expected):
        keep_batch_statistics(model)

    cached = ContrastiveStep(found, views=views_of(), loss=loss, microbatch=microbatch).backward(*batch())
    whole = ContrastiveStep(expected, views=views_of(), loss=loss).backward(*batch())

    scale = gradients(expected).abs().max()
    assert scale > 1e-3
    assert (gradients(found) - gradients(expected)).abs().max() < tolerance * max(1, scale)
    for ours, theirs in zip(cached, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert cached.losses.shape == (N,)
    assert not cached.losses.requires_grad


def test_the_gradient_of_a_part_alone_would_be_another():
    """What gradient caching is for: accumulating over microbatches has fewer negatives."""
    found, expected = net(), net()
    for model in (found, expected):
        keep_batch_statistics(model)
    for part in range(0, N, 4):
        ContrastiveStep(found, views=views_of()).backward(*batch(slice(part, part + 4)))
    ContrastiveStep(expected, views=views_of(), microbatch=4).backward(*batch())

    assert (gradients(found) / 3 - gradients(expected)).abs().max() > 1e-3


def test_running_statistics_move_once_by_the_mean_of_the_microbatches():
    model, before = net(), net()
    project = ViewProjections(copy.deepcopy(model), views=views_of())
    norms = {name: m for name, m in project.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in norms}
    for part in range(0, N, 4):  # each part's own statistics, from a net that forgets all others
        for norm in norms.values():
            norm.momentum = 1.0
        project(*batch(slice(part, part + 4)))
        for name, norm in norms.items():
            seen[name].append((norm.running_mean.clone(), norm.running_var.clone()))

    ContrastiveStep(model, views=views_of(), microbatch=4).backward(*batch())

    for name, norm in ((name, model.get_submodule(name)) for name in norms):
        start = before.get_submodule(name)
        for index, key in enumerate(("running_mean", "running_var")):
            mean = torch.stack([part[index] for part in seen[name]]).mean(0)
            expected = (1 - momenta[name]) * getattr(start, key) + momenta[name] * mean
            torch.testing.assert_close(getattr(norm, key), expected, atol=1e-12, rtol=1e-12)
        assert norm.num_batches_tracked == 1
        assert norm.momentum == momenta[name]


def test_without_a_momentum_statistics_are_the_plain_mean_over_the_steps():
    found, expected = net(), net()
    for model in (found, expected):
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
    for number in range(3):
        images, drawn = batch(slice(0, 6), later=number)
        # Both parts are the same tiles, so that their mean is that of one.
        twice = torch.cat([images, images]), tuple(torch.cat([x, x], 1) for x in drawn)
        ContrastiveStep(found, views=views_of(), microbatch=6).backward(*twice)
        ContrastiveStep(expected, views=views_of()).backward(images, drawn)

    for (name, ours), theirs in zip(found.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_frozen_statistics_stay_as_they_are():
    model, before = net(), net()
    keep_batch_statistics(model)

    ContrastiveStep(model, views=views_of(), microbatch=4).backward(*batch())

    for (name, ours), theirs in zip(model.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_error_in_the_model_leaves_the_momentum(wrap):
    model = net()
    contrast = ContrastiveStep(model, views=views_of(), microbatch=4)
    wrap(encode_part=lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        contrast.backward(*batch())

    assert [m.momentum for m in model.modules() if hasattr(m, "momentum")] == [0.1, 0.3]


@pytest.mark.parametrize("microbatch", [None, 4])
def test_a_scaler_scales_the_gradient_alike(microbatch):
    plain, scaled = net(torch.float32), net(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    for model, how in ((plain, None), (scaled, scaler)):
        keep_batch_statistics(model)
        ContrastiveStep(model, views=views_of(), scaler=how, microbatch=microbatch).backward(*batch())

    torch.testing.assert_close(gradients(scaled) / 1024, gradients(plain))


def test_a_microbatch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="microbatch: got 5, which does not divide the 12 tiles"):
        ContrastiveStep(net(), views=views_of(), microbatch=5).backward(*batch())


def test_step_against_plain_autograd():
    """One pass without any of the step's machinery: views, net, NT-Xent, backward."""
    found, expected = net(), net()

    result = ContrastiveStep(found, views=views_of(), temperature=0.3).backward(*batch())

    a, b = ViewProjections(expected, views=views_of())(*batch())
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / 0.3).fill_diagonal_(-math.inf)
    partner = torch.arange(2 * N).roll(N)
    rows = F.cross_entropy(similarity, partner, reduction="none")
    rows.mean().backward()
    torch.testing.assert_close(result.losses, rows.detach().reshape(2, N).mean(0))
    torch.testing.assert_close(gradients(found), gradients(expected))


# Traced sooner. The views' own graph is the same with microbatches.
FLIPS_ALONE = {"affine_probability": 0.0, "jitter_probability": 0.0, "blur_probability": 0.0}


@pytest.mark.parametrize("microbatch", [None, 4])
def test_augmentation_model_and_loss_compile_without_a_graph_break(microbatch, wrap):
    """`fullgraph` raises at the first break; a second epoch must not compile again.

    The graphs, forward and backward, are traced and run as they are: making C++ of them takes most of a minute, and is
    done by scripts/benchmarks/step.py.
    """
    torch._dynamo.reset()
    wrap(compile=lambda whole, f, *, fullgraph: whole(f, fullgraph=fullgraph, backend="aot_eager"))
    model = ContrastiveModel(small_encoder(), projection=build_projection(4, kind="mlp", hidden=6, dim=5))
    other = copy.deepcopy(model)
    changes = {"stain_probability": 0.5, "grayscale_probability": 0.2} if microbatch is None else FLIPS_ALONE
    compiled = ContrastiveStep(model, views=views_of(**changes), microbatch=microbatch, compile=True)
    eager = ContrastiveStep(other, views=views_of(**changes), microbatch=microbatch)

    result, expected = (one.backward(*batch(slice(0, 8), views=views_of(**changes))) for one in (compiled, eager))

    torch.testing.assert_close(result.losses, expected.losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.negative, expected.negative, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(model), gradients(other), atol=1e-5, rtol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled.backward(*batch(slice(0, 8), later=1, views=views_of(**changes)))


def small_encoder() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(encoder, nn.Flatten())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_step_of_a_resnet_on_a_gpu_equals_the_cpu():
    torch.manual_seed(0)
    model = ContrastiveModel(build_encoder("resnet18", stem="small"), projection=build_projection(512))
    keep_batch_statistics(model)
    on_gpu = copy.deepcopy(model).cuda().to(memory_format=torch.channels_last)
    there = Views(Augmentation(), 3, torch.full((3,), 0.5).cuda(), torch.full((3,), 0.25).cuda(), SIZE_PX)
    here = Views(Augmentation(), 3, torch.full((3,), 0.5), torch.full((3,), 0.25), SIZE_PX)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 rounds the products to 10 bits
        ours = ContrastiveStep(on_gpu, views=there, microbatch=4).backward(*batch(views=there, device="cuda"))
    expected = ContrastiveStep(model, views=here).backward(*batch(views=here))

    torch.testing.assert_close(ours.losses.cpu(), expected.losses, atol=1e-3, rtol=1e-3)
    cosine = F.cosine_similarity(gradients(on_gpu).cpu().double(), gradients(model).double(), dim=0)
    assert cosine > 0.999


def test_similarities_equal_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator) for _ in range(2))
    everything = [row / row.norm() for row in torch.cat([a, b]).double()]
    positive, others = [], []
    for i in range(10):
        for j in range(10):
            if j == (i + 5) % 10:
                positive.append(float(everything[i] @ everything[j]))
            elif i != j:
                others.append(float(everything[i] @ everything[j]))

    found = step.similarities(a, b)

    assert float(found[0]) == pytest.approx(np.mean(positive))
    assert float(found[1]) == pytest.approx(np.mean(others))


class Doubles(TorchDispatchMode):
    """Lists the operations that make float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = tree_leaves(out)
        self.found += [str(func) for x in made if isinstance(x, torch.Tensor) and x.dtype == torch.float64]
        return out


@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("kind", ["mps", "cpu"])
def test_a_step_on_mps_is_without_float64(kind, microbatch, wrap):
    """Which MPS does not have; the step is as there, the tensors on the CPU, where it does keep sums in float64."""
    wrap(sum_dtype=lambda real, device: real(torch.device(kind)))
    model = net(torch.float32)
    optimizer = build_optimizer("lars", parameter_groups(model, learning_rate=0.1, weight_decay=0.1))
    views = views_of(stain_probability=0.5, grayscale_probability=0.5)
    with Doubles() as doubles:
        ContrastiveStep(model, views=views, microbatch=microbatch).backward(*batch(views=views))
        optimizer.step()
    assert (doubles.found == []) == (kind == "mps")

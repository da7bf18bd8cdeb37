from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode

from sscl import augment, colours, draws
from sscl.draws import Augmentation, ViewParameters

SIZE = 32


def tiles(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Smooth random colour tiles in 0-1, (count, 3, SIZE, SIZE)."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)


def identity(count: int = 4) -> ViewParameters:
    one, zero = torch.ones(count), torch.zeros(count)
    return ViewParameters(
        crop=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
        flip=torch.ones(count, 2),
        rotation=zero,
        translation=torch.zeros(count, 2),
        scale=one,
        shear=torch.zeros(count, 2),
        blur_sigma=zero,
        brightness=one,
        contrast=one,
        saturation=one,
        hue=zero,
        grayscale=zero,
        stain_gain=torch.ones(count, 3),
        stain_offset=torch.zeros(count, 3),
    )


def changed(**fields: torch.Tensor) -> ViewParameters:
    return dataclasses.replace(identity(), **fields)


EVERYTHING = Augmentation(grayscale_probability=0.3, stain_probability=0.7)


KEYS = {"augmentation": EVERYTHING, "seed": 1, "epoch": 2, "view": 0, "mean": torch.zeros(3), "std": torch.ones(3)}


def views(images: torch.Tensor, index: torch.Tensor, **keys: int | torch.Tensor) -> torch.Tensor:
    return augment.view(images, index, **{**KEYS, **keys})


def pictures(count: int, size_px: int = SIZE) -> torch.Tensor:
    """Tiles with some noise, uint8 (count, size_px, size_px, 3)."""
    x = F.interpolate(tiles(count), size_px, mode="bilinear")
    x = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return (x.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# The generator


def test_philox_known_answers():
    # Test vectors of the Random123 distribution for philox4x32-10.
    like = torch.zeros(1)
    zero = draws.philox([0, 0, 0, 0], seed=0, like=like)
    assert [f"{int(w):08x}" for w in zero] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = draws.philox([0xFFFFFFFF] * 4, seed=0xFFFFFFFFFFFFFFFF, like=like)
    assert [f"{int(w):08x}" for w in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_uniform_is_flat_and_uncorrelated():
    u = draws.uniform(torch.arange(20000), 6, seed=3, epoch=0, view=0).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert np.abs(u.mean(1) - 0.5).max() < 0.01
    correlation = np.corrcoef(u)
    assert np.abs(correlation - np.eye(6)).max() < 0.03
    assert abs(np.corrcoef(u[0, 1:], u[0, :-1])[0, 1]) < 0.03


def test_draws_follow_ranges_and_probabilities():
    a = Augmentation(hflip_probability=0.25, rotation_degrees=20, affine_probability=0.5)
    p = draws.draw(a, torch.arange(8000), seed=0, epoch=0, view=0, size_px=224)
    assert (p.flip[:, 0] == -1).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (p.rotation != 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert p.rotation.abs().max() <= 20
    left, top, width, height = p.crop.unbind(1)
    assert (left >= 0).all()
    assert (left + width <= 1 + 1e-6).all()
    assert (top + height <= 1 + 1e-6).all()
    area = width * height
    assert area.min() > 0.15
    assert area.mean().item() == pytest.approx(0.6, abs=0.05)


def test_every_parameter_has_its_own_probability_and_range():
    a = Augmentation(
        hflip_probability=0.1,
        vflip_probability=0.9,
        affine_probability=0.3,
        rotation_degrees=20,
        translation=0.07,
        scale=(0.8, 1.3),
        shear_degrees=6,
        blur_probability=0.4,
        blur_sigma_px=(0.5, 1.5),
        jitter_probability=0.6,
        brightness=0.1,
        contrast=0.2,
        saturation=0.3,
        hue=0.04,
        grayscale_probability=0.2,
        stain_probability=0.7,
        stain_strength=0.15,
        stain_shift=0.03,
    )
    p = draws.draw(a, torch.arange(8000), seed=0, epoch=0, view=0, size_px=224)
    drawn = [  # values, the identity, how many have another, from, to
        *((p.flip[:, i], 1, share, -1, -1) for i, share in enumerate((0.1, 0.9))),
        (p.rotation, 0, 0.3, -20, 20),
        *((p.translation[:, i], 0, 0.3, -0.07, 0.07) for i in (0, 1)),
        (p.scale, 1, 0.3, 0.8, 1.3),
        *((p.shear[:, i], 0, 0.3, -6, 6) for i in (0, 1)),
        (p.blur_sigma, 0, 0.4, 0.5, 1.5),
        (p.brightness, 1, 0.6, 0.9, 1.1),
        (p.contrast, 1, 0.6, 0.8, 1.2),
        (p.saturation, 1, 0.6, 0.7, 1.3),
        (p.hue, 0, 0.6, -0.04, 0.04),
        (p.grayscale, 0, 0.2, 1, 1),
        *((p.stain_gain[:, i], 1, 0.7, 0.85, 1.15) for i in (0, 1)),
        *((p.stain_offset[:, i], 0, 0.7, -0.03, 0.03) for i in (0, 1)),
    ]
    for values, identity, share, low, high in drawn:
        others = values[values != identity]
        assert len(others) / 8000 == pytest.approx(share, abs=0.02)
        width = 0.01 * (high - low) + 1e-6
        assert others.min() == pytest.approx(low, abs=width)
        assert others.max() == pytest.approx(high, abs=width)
        assert others.mean() == pytest.approx((low + high) / 2, abs=3 * width)
    assert (p.stain_gain[:, 2] == 1).all()
    assert (p.stain_offset[:, 2] == 0).all()
    unequal = torch.stack([values for values, *_, low, high in drawn if low < high])
    assert (torch.corrcoef(unequal) - torch.eye(len(unequal))).abs().max() < 0.05


# Whose randomness


def test_views_of_a_tile_do_not_depend_on_its_neighbours():
    images = (tiles(6).permute(0, 2, 3, 1) * 255).to(torch.uint8)
    index = torch.tensor([11, 5, 70000, 3, 9, 4_000_000_000])
    together = views(images, index)
    for i in range(6):
        assert torch.equal(views(images[i : i + 1], index[i : i + 1])[0], together[i])
    order = torch.tensor([3, 0, 5])
    assert torch.equal(views(images[order], index[order]), together[order])


def test_views_differ_by_tile_epoch_view_and_seed():
    images = (tiles(1).permute(0, 2, 3, 1) * 255).to(torch.uint8)
    base = views(images, torch.tensor([0]))
    assert torch.equal(base, views(images, torch.tensor([0])))
    for other in (
        views(images, torch.tensor([1])),
        views(images, torch.tensor([2**16])),
        views(images, torch.tensor([0]), epoch=3),
        views(images, torch.tensor([0]), view=1),
        views(images, torch.tensor([0]), seed=2),
    ):
        assert (other - base).abs().max() > 0.01


def test_autocast_does_not_blur_the_views():
    images = (tiles(3).permute(0, 2, 3, 1) * 255).to(torch.uint8)
    plain = views(images, torch.arange(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views(images, torch.arange(3)), plain)


class Called(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_is_copied_to_the_device_or_read_from_it():
    images, epoch = pictures(3), torch.tensor(4)
    with Called() as called:
        views(images, torch.arange(3), epoch=epoch)
    assert {"grid_sampler_2d", "bmm"} & called.names
    # What torch.tensor, .item() and indexing by a mask call.
    assert not {"lift_fresh", "lift_fresh_copy", "_local_scalar_dense", "item", "nonzero", "is_nonzero"} & called.names


def test_an_epoch_may_be_a_tensor():
    images, index = pictures(2), torch.arange(2)
    for epoch in (0, 7):
        assert torch.equal(views(images, index, epoch=torch.tensor(epoch)), views(images, index, epoch=epoch))
        assert torch.equal(
            draws.uniform(index, 5, seed=3, epoch=torch.tensor(epoch), view=0),
            draws.uniform(index, 5, seed=3, epoch=epoch, view=0),
        )


def test_two_views_at_once_are_two_calls():
    images, index = pictures(5), torch.tensor([4, 0, 3, 3, 9])
    both = views(images, index, count=2)
    assert both.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(both, torch.cat([views(images, index), views(images, index, view=1)]))
    number = torch.tensor([0, 0, 0, 2, 0])  # the tile that is there twice
    both = views(images, index, view=number, count=2)
    assert torch.equal(both, torch.cat([views(images, index, view=number), views(images, index, view=number + 1)]))
    assert (both[2] - both[3]).abs().max() > 0.01


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_views_do_not_depend_on_how_many_tiles_the_cpu_takes_at_once(at_once, wrap):
    images, index = pictures(5, 50), torch.arange(5)
    whole = views(images, index, count=2)
    wrap(tiles_at_once=lambda *_: at_once)
    assert torch.equal(views(images, index, count=2), whole)


def test_a_cpu_takes_what_fits_its_cache(wrap):
    wrap(threads=lambda *_: 1)
    assert augment._tiles_at_once(torch.empty(64, 224, 224, 3)) == 2
    assert augment._tiles_at_once(torch.empty(64, 512, 512, 3)) == 1
    assert augment._tiles_at_once(torch.empty(64, 28, 28, 3)) == 128
    assert augment._tiles_at_once(torch.empty(64, 224, 224, 3, device="meta")) == 64


# The whole against a plain version: operation by operation, a tile at a time


def plain_view(image: torch.Tensor, tile: int, *, epoch: int, view: int, augmentation: Augmentation) -> torch.Tensor:
    """A view by torch's affine grid, a convolution, torchvision's colours and matrices of the stains, (3, H, W)."""
    a, side = augmentation, image.shape[1]
    p = draws.draw(a, torch.tensor([tile]), seed=1, epoch=epoch, view=view, size_px=side)
    x = image.permute(2, 0, 1)[None].float() / 255
    grid = F.affine_grid(draws.warp_matrix(p), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if p.blur_sigma > 0:
        radius = min(draws.blur_radius(a.blur_sigma_px[1]), side - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / p.blur_sigma) ** 2)
        kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)  # (3, 1, 1, taps)
        x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel, groups=3)
        x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel.mT, groups=3)
    for adjust, amount in (
        (tv.adjust_brightness, p.brightness),
        (tv.adjust_contrast, p.contrast),
        (tv.adjust_saturation, p.saturation),
        (tv.adjust_hue, p.hue),
    ):
        x = adjust(x, amount.item())
    stains = torch.tensor(colours.STAINS)
    stains = stains / stains.norm(dim=1, keepdim=True)
    density = -torch.log(x.clamp(min=1 / 255)).permute(0, 2, 3, 1)
    amounts = density @ torch.linalg.inv(stains)
    changed = (amounts * p.stain_gain + p.stain_offset) @ stains
    x = (x * torch.exp(density - changed).permute(0, 3, 1, 2)).clamp(0, 1)
    return (tv.rgb_to_grayscale(x, 3) if p.grayscale else x)[0]


@pytest.mark.parametrize("size_px", [20, 32, 50, 96])  # less than a band of the blur, one, two uneven, three
def test_views_equal_a_plain_version(size_px):
    a = dataclasses.replace(EVERYTHING, hue=0.3)
    for augmentation, tolerance in ((EVERYTHING, 1e-5), (a, 2e-5)):
        images, index = pictures(8, size_px), torch.arange(8)
        out = views(images, index, augmentation=augmentation)
        for i in range(8):
            expected = plain_view(images[i], i, epoch=2, view=0, augmentation=augmentation)
            assert (out[i] - expected).abs().max() < tolerance, i


def test_views_of_photograph_size_equal_a_plain_version():
    images, index = pictures(3, 224), torch.arange(3)
    out = views(images, index, epoch=torch.tensor(5), view=1)
    for i in range(3):
        expected = plain_view(images[i], i, epoch=5, view=1, augmentation=EVERYTHING)
        assert (out[i] - expected).abs().max() < 1e-5


def test_compiled_views_are_one_graph_for_all_epochs_and_equal_the_others():
    images, index = pictures(2), torch.arange(2)
    compiled = torch.compile(augment.view, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    for epoch in (0, 1, 9):
        with torch.compiler.set_stance("default" if epoch == 0 else "fail_on_recompile"):
            out = compiled(images, index, **{**KEYS, "epoch": torch.tensor(epoch)}, count=2)
        assert (out - views(images, index, epoch=epoch, count=2)).abs().max() < 1e-5
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_random_numbers_of_the_compiler_are_the_same_bits(monkeypatch):
    # Else it compiles seven more files: to learn which instructions the processor has, and to read headers faster.
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", True)
    monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", False)
    index, keys = torch.tensor([0, 7, 2**33 + 1]), {"seed": 2**40 + 5, "epoch": torch.tensor(9), "view": 1}
    compiled = torch.compile(draws.uniform, fullgraph=True)  # the only test that runs the compiler of C++
    assert torch.equal(compiled(index, 27, **keys), draws.uniform(index, 27, **keys))


# Each operation against torchvision


def test_identity_leaves_tiles_alone():
    x = tiles()
    out = x
    for operation, arguments in augment.operations(identity(), augmentation=EVERYTHING, size_px=SIZE):
        out = operation(out, *arguments)
    assert (out - x).abs().max() < 1e-5


def test_flips():
    x = tiles()
    flip = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]])
    out = augment.warp(x, changed(flip=flip))
    expected = torch.stack([tv.horizontal_flip(x[0]), tv.vertical_flip(x[1]), x[2].flip(1, 2), x[3]])
    assert (out - expected).abs().max() < 1e-5


def test_crop():
    x = tiles()
    boxes = torch.tensor([[4, 2, 16, 20], [0, 0, 8, 8], [10, 16, 20, 16], [0, 0, 32, 32]])  # left, top, width, height
    out = augment.warp(x, changed(crop=boxes / SIZE))
    for i, (left, top, width, height) in enumerate(boxes.tolist()):
        expected = tv.resized_crop(x[i : i + 1], top, left, height, width, [SIZE, SIZE], antialias=False)[0]
        # torchvision repeats the crop's border where this samples the tile beyond it: half a source pixel at each side.
        rim = 1 + SIZE // min(width, height)
        assert (out[i] - expected)[:, rim:-rim, rim:-rim].abs().max() < 1e-4


@pytest.mark.parametrize(
    ("angle", "shift", "scale", "shear"),
    [
        (30, (0, 0), 1, (0, 0)),
        (0, (4, -3), 1, (0, 0)),
        (0, (0, 0), 1.3, (0, 0)),
        (0, (0, 0), 1, (12, 0)),
        (0, (0, 0), 1, (0, -9)),
        (-20, (2, 5), 0.9, (7, 4)),
    ],
)
def test_affine(angle, shift, scale, shear):
    x = tiles()
    four = torch.ones(4)
    p = changed(
        rotation=angle * four,
        translation=torch.tensor([shift]).repeat(4, 1) / SIZE,
        scale=scale * four,
        shear=torch.tensor([shear]).float().repeat(4, 1),
    )
    expected = tv.affine(x, angle, list(shift), scale, list(shear), interpolation=InterpolationMode.BILINEAR)
    ones = torch.ones_like(x)  # torchvision fills with black, and blends it in at the rim
    inside = tv.affine(ones, angle, list(shift), scale, list(shear), interpolation=InterpolationMode.BILINEAR) > 0.9999
    assert inside.float().mean() > 0.4
    assert ((augment.warp(x, p) - expected).abs() * inside).max() < 1e-4


def test_warp_composes_crop_then_flip_then_affine():
    x = torch.nn.functional.interpolate(tiles(), 64, mode="bilinear")
    steps = dict(crop=torch.tensor([[0.1, 0.2, 0.6, 0.7]]).repeat(4, 1)), dict(flip=torch.tensor([[-1.0, 1.0]] * 4))
    turn = dict(rotation=torch.full((4,), 15.0))
    at_once = augment.warp(x, changed(**steps[0], **steps[1], **turn))
    by_steps = augment.warp(augment.warp(augment.warp(x, changed(**steps[0])), changed(**steps[1])), changed(**turn))
    assert (at_once - by_steps)[:, :, 18:-18, 18:-18].abs().max() < 0.03  # thrice interpolated, so not exactly


def test_blur():
    x = tiles()
    sigma = torch.tensor([0.5, 1.0, 2.0, 1.4])
    out = augment.blur(x, sigma, radius=6)
    for i in range(4):
        expected = tv.gaussian_blur(x[i], [13, 13], [float(sigma[i])] * 2)
        assert (out[i] - expected).abs().max() < 1e-5
    assert torch.equal(augment.blur(x, torch.zeros(4), radius=6), x)


@pytest.mark.parametrize(("size_px", "radius"), [(5, 6), (13, 6), (33, 6), (50, 40), (64, 6), (97, 12)])
def test_blur_of_any_size(size_px, radius):
    x = F.interpolate(tiles(), size_px, mode="nearest")
    sigma = torch.tensor([0.3, 1.0, 4.0, 0.0])
    out = augment.blur(x, sigma, radius=radius)
    taps = 2 * min(radius, size_px - 1) + 1  # a mirrored border is narrower than the tile
    for i in range(3):
        expected = tv.gaussian_blur(x[i], [taps, taps], [float(sigma[i])] * 2)
        assert (out[i] - expected).abs().max() < 1e-5
    assert torch.equal(out[3], x[3])


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (colours.adjust_brightness, tv.adjust_brightness, (0.5, 0.8, 1.3, 1.7)),
        (colours.adjust_contrast, tv.adjust_contrast, (0.5, 0.8, 1.3, 1.7)),
        (colours.adjust_saturation, tv.adjust_saturation, (0.0, 0.8, 1.3, 1.7)),
        (colours.adjust_hue, tv.adjust_hue, (-0.5, -0.1, 0.07, 0.4)),
    ],
)
def test_colour(ours, theirs, factors):
    x = tiles()
    x[0, :, :4] = 0.5  # grey: no hue
    x[1, :, :4] = 0.0
    out = ours(x, torch.tensor(factors))
    expected = torch.stack([theirs(x[i], factors[i]) for i in range(4)])
    assert (out - expected).abs().max() < 1e-5


@pytest.mark.parametrize("turn", [-1 / 6, -0.05, 0.0, 0.02, 1 / 6])
def test_hue_of_small_turns_needs_no_shift_of_channels(turn):
    x = tiles()
    x[2, 0, :9], x[2, 1, :9] = 0.7, 0.7  # two colours alike
    x[3] = x[3].round()
    turns = torch.full((4,), turn)
    few = colours.adjust_hue(x, turns, largest=1 / 6)
    assert (few - colours.adjust_hue(x, turns)).abs().max() < 1e-6
    assert (few - tv.adjust_hue(x, turn)).abs().max() < 1e-5


def test_grayscale():
    x = tiles()
    assert (colours.grayscale(x) - tv.rgb_to_grayscale(x)).abs().max() < 1e-6


# Stains


def test_stain_matrix_is_inverted():
    stains = torch.tensor(colours.STAINS, dtype=torch.float64)
    stains = stains / stains.norm(dim=1, keepdim=True)
    unmix = torch.tensor(colours.unmixing(), dtype=torch.float64)
    assert torch.allclose(unmix @ stains, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_stain_jitter_against_a_pixel_by_pixel_reference():
    x = tiles()
    gain = torch.tensor([[1.2, 0.8, 1.0]]).repeat(4, 1)
    offset = torch.tensor([[0.02, -0.03, 0.0]]).repeat(4, 1)
    out = colours.adjust_stain(x, gain, offset)
    stains = np.array(colours.STAINS)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    for row, column in ((0, 0), (7, 20), (31, 31)):
        density = -np.log(np.maximum(x[2, :, row, column].numpy().astype(float), 1 / 255))
        amounts = np.linalg.solve(stains.T, density)
        expected = np.exp(-(stains.T @ (amounts * [1.2, 0.8, 1.0] + [0.02, -0.03, 0.0]))).clip(0, 1)
        assert out[2, :, row, column].numpy() == pytest.approx(expected, abs=1e-4)


def test_more_haematoxylin_darkens_and_differs_by_view():
    x = tiles()
    darker = colours.adjust_stain(x, torch.tensor([[1.5, 1.0, 1.0]] * 4), torch.tensor([[0.1, 0.0, 0.0]] * 4))
    assert darker.mean() < x.mean()
    a = Augmentation(stain_probability=1.0)
    first, second = (draws.draw(a, torch.arange(50), seed=0, epoch=0, view=v, size_px=64).stain_gain for v in (0, 1))
    assert (first[:, :2] != second[:, :2]).all()
    assert (first[:, 2] == 1).all()


# Form


def test_output_form_and_normalisation():
    images = (tiles().permute(0, 2, 3, 1) * 255).to(torch.uint8)
    off = {f.name: 0.0 for f in dataclasses.fields(Augmentation) if f.name.endswith("probability")}
    quiet = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), **off)
    mean, std = torch.tensor([0.7, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    out = augment.view(images, torch.arange(4), augmentation=quiet, seed=0, epoch=0, view=0, mean=mean, std=std)
    expected = tv.normalize(images.permute(0, 3, 1, 2) / 255, mean.tolist(), std.tolist())
    assert out.shape == (4, 3, SIZE, SIZE)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert (out - expected).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_cpu_views():
    images = (tiles(8).permute(0, 2, 3, 1) * 255).to(torch.uint8)
    index = torch.arange(8)
    on_gpu = augment.view(
        images.cuda(),
        index.cuda(),
        augmentation=EVERYTHING,
        seed=1,
        epoch=2,
        view=0,
        mean=torch.zeros(3, device="cuda"),
        std=torch.ones(3, device="cuda"),
    )
    assert (on_gpu.cpu() - views(images, index)).abs().max() < 1e-3

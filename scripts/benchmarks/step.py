"""The pretraining step: against the same step on tensors already on the device, and against lightly's loop."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from race import finish, race
from sscl.data.tiles import place_store
from sscl.device import autocast, pick_precision
from sscl.draws import Augmentation
from sscl.losses import nt_xent
from sscl.models.encoders import build_encoder
from sscl.models.heads import ContrastiveModel, build_projection
from sscl.train import memory, optim
from sscl.train.step import STEPS_AT_ONCE, ContrastiveStep, Drawn, Views, similarities

SECONDS, QUICK_SECONDS = 40.0, 0.5
LIMIT_GIB = 8  # the old card whose owner needs gradient caching


@dataclass(frozen=True)
class Case:
    """A model at a tile size."""

    encoder: str
    stem: str
    size_px: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.encoder} at {self.size_px} px, {self.batch_size} tiles"


CPU = (Case("resnet18", "standard", 64, 64),)
GPU = (
    Case("resnet50", "standard", 224, 256),
    Case("resnet18", "standard", 224, 256),
    Case("resnet18_pathmnist", "standard", 28, 512),
)
QUICK = Case("resnet18", "standard", 16, 4)


def measure(*, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of this topic."""
    on_gpu = device.type == "cuda"
    cases = (QUICK,) if quick else GPU if on_gpu else CPU
    seconds = QUICK_SECONDS if quick else SECONDS
    rows = []
    for case in cases:
        for compiled in (False, True) if on_gpu and not quick else (False,):
            rows += against_synthetic(case, device=device, compiled=compiled, seconds=seconds)
    rows += against_lightly(cases[-1] if on_gpu else cases[0], device=device, seconds=seconds)
    if on_gpu and not quick:
        rows += against_lightly(GPU[1], device=device, seconds=seconds)
    rows += caching(QUICK if quick else GPU[0] if on_gpu else CPU[0], device=device, quick=quick, seconds=seconds)
    if not on_gpu:
        targets = {
            "pretraining against synthetic tensors, ResNet50 at 224 px": ">= 0.95",
            "pretraining against synthetic tensors, resnet18_pathmnist at 28 px": ">= 0.9",
            "views a second, ResNet50 at 224 px, bf16, H200": ">= 5500",
            "pretraining against lightly's loop, ResNet18 at 224 px": ">= 3",
            "pretraining against lightly's loop, 28 px": ">= 10",
            "augmentation, fraction of a ResNet50 step at 224 px": "<= 0.05",
        }
        rows += [row(what, target=target, note="needs a GPU") for what, target in targets.items()]
    return rows


def row(what: str, **values: Any) -> dict[str, Any]:
    """Return a row; what is not given was not measured."""
    empty = {"ours": None, "peer": "", "theirs": None, "unit": "", "ratio": None, "target": "", "note": ""}
    return {"what": what, **empty, **values}


@dataclass
class Training:
    """A model, its optimizer, and how it steps."""

    model: ContrastiveModel
    optimizer: torch.optim.Optimizer
    precision: str
    device: torch.device

    def project(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projections of views (2N, 3, H, W)."""
        with autocast(self.device, self.precision):
            a, b = self.model(views).chunk(2)
        return a, b

    def step(self, losses_of: Callable[[], Any]) -> None:
        """Take a step down the losses."""
        self.optimizer.zero_grad(set_to_none=True)
        losses_of()
        self.optimizer.step()


def training(case: Case, *, device: torch.device) -> Training:
    torch.manual_seed(0)
    encoder = build_encoder(case.encoder, stem=case.stem)
    projection = build_projection(encoder.num_features, kind="mlp")
    model = ContrastiveModel(encoder, projection=projection).to(device).to(memory_format=torch.channels_last)
    groups = optim.parameter_groups(model, learning_rate=0.01, weight_decay=5e-4)
    return Training(model.train(), optim.build_optimizer("sgd", groups), pick_precision("auto", device), device)


def some_tiles(case: Case) -> NDArray[np.uint8]:
    """Return tiles enough for some batches, smooth as tissue is, so that lightly's PIL has ordinary work."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 230, (4 * case.batch_size, 8, 8, 3)).astype(np.float32)
    x = nn.functional.interpolate(torch.from_numpy(coarse).permute(0, 3, 1, 2), size=case.size_px, mode="bilinear")
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy().astype(np.uint8))


def views_on(device: torch.device, case: Case, *, precision: str) -> Views:
    mean, std = (torch.tensor(v, device=device) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return Views(Augmentation(), 0, mean, std, case.size_px, precision)


def our_step(
    case: Case, tiles: NDArray[np.uint8] | np.memmap, *, device: torch.device, **options: Any
) -> tuple[Training, Callable[[], None]]:
    """Return a training and its next step from the tiles, as `sscl pretrain` takes it."""
    own = training(case, device=device)
    views = views_on(device, case, precision=own.precision)
    contrast = ContrastiveStep(own.model, views=views, **options)
    store = place_store(tiles, device=device, budget_gb=4)
    total = torch.zeros(3, device=device, dtype=torch.float64)

    def drawn(rows: Iterator[NDArray[np.int64]]) -> Iterator[Drawn]:
        while True:
            some = torch.from_numpy(np.stack(list(itertools.islice(rows, STEPS_AT_ONCE)))).to(device)
            yield from views.steps(some, torch.zeros_like(some), epoch=0)

    def orders() -> Iterator[NDArray[np.int64]]:
        for epoch in itertools.count():
            order = np.random.default_rng(epoch).permutation(len(tiles))
            yield from order[: len(order) // case.batch_size * case.batch_size].reshape(-1, case.batch_size)

    rows_ahead, rows_now = itertools.tee(orders())
    batches, parameters = store.batches(rows_ahead), drawn(rows_now)

    def losses() -> None:
        signs = contrast.backward(next(batches), next(parameters))
        total.add_(torch.stack([signs.losses.mean().double(), signs.positive, signs.negative]))

    return own, lambda: own.step(losses)


def synthetic_step(case: Case, *, device: torch.device, compiled: bool) -> Callable[[], None]:
    """Return a step on views that are there already: the least that training can take."""
    own = training(case, device=device)
    x = torch.randn(2 * case.batch_size, 3, case.size_px, case.size_px, device=device)
    x = x.to(memory_format=torch.channels_last)

    def signs() -> Any:
        a, b = own.project(x)
        return nt_xent(a, b), *similarities(a, b)

    run = torch.compile(signs, fullgraph=True) if compiled else signs
    return lambda: own.step(lambda: run()[0].backward())


def against_synthetic(case: Case, *, device: torch.device, compiled: bool, seconds: float) -> list[dict[str, Any]]:
    """Race the whole step, from the store on, with the step on synthetic tensors; of the rest, where it goes."""
    own, ours = our_step(case, some_tiles(case), device=device, compile=compiled)
    contenders: dict[str, Callable[[], object]] = {
        "ours": ours,
        "synthetic": synthetic_step(case, device=device, compiled=compiled),
    }
    images = torch.from_numpy(some_tiles(case)[: case.batch_size]).to(device)
    rows = torch.arange(case.batch_size, device=device)
    views = views_on(device, case, precision=own.precision)
    contenders["views"] = lambda: views.render(images, views.batch(rows, torch.zeros_like(rows), epoch=0))
    order = np.arange(case.batch_size)[None].repeat(2, 0)
    store = place_store(some_tiles(case), device=device, budget_gb=4)
    contenders["data"] = lambda: [*store.batches(order)]
    taken = race(contenders, seconds=seconds)
    rate = 2 * case.batch_size / taken["ours"]
    targets = {"resnet50": ">= 0.95", "resnet18": ">= 0.95", "resnet18_pathmnist": ">= 0.9"}
    at = f"{case}, {own.precision}{', compiled' if compiled else ''}"
    found = [
        row(
            f"pretraining against synthetic tensors, {at}",
            ours=2 * case.batch_size / taken["ours"],
            peer="the same step on synthetic tensors",
            theirs=2 * case.batch_size / taken["synthetic"],
            unit="views/s",
            ratio=taken["synthetic"] / taken["ours"],
            target=targets.get(case.encoder, ""),
        ),
        row(
            f"augmentation, fraction of the step, {at}",
            ours=taken["views"] / taken["ours"],
            unit="of the step",
            ratio=taken["views"] / taken["ours"],
            target="<= 0.05" if device.type == "cuda" else "",
            note="" if not compiled else "the views themselves not compiled",
        ),
        row(
            f"reading a batch, fraction of the step, {at}",
            ours=taken["data"] / 2 / taken["ours"],
            unit="of the step",
            ratio=taken["data"] / 2 / taken["ours"],
            target="<= 0.01",
            note="as if nothing overlapped",
        ),
    ]
    if case.encoder == "resnet50" and device.type == "cuda":
        what = f"views a second, {at}"
        found.append(row(what, ours=rate, unit="views/s", ratio=rate, target=">= 5500", note="the target is an H200's"))
    return found


def against_lightly(case: Case, *, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Race our loop with lightly's SimCLR transform in torch's DataLoader, on the same model and loss."""
    what = f"pretraining against lightly's loop, {case}"
    target = ">= 1" if device.type == "cpu" else ">= 10" if case.size_px == 28 else ">= 3"
    try:
        import lightly
        from lightly.transforms import SimCLRTransform
    except ImportError:
        return [row(what, peer="lightly", target=target, note="lightly is not installed; scripts/bench installs it")]
    from PIL import Image

    tiles = some_tiles(case)
    _, ours = our_step(case, tiles, device=device)
    theirs = training(case, device=device)
    # The same operations at the same chances as our defaults; grayscale and rotation by quarter turns off, as ours.
    transform = SimCLRTransform(
        input_size=case.size_px,
        cj_prob=0.8,
        cj_strength=1.0,
        cj_bright=0.2,
        cj_contrast=0.2,
        cj_sat=0.2,
        cj_hue=0.05,
        min_scale=0.2,
        random_gray_scale=0.0,
        gaussian_blur=0.5,
        sigmas=(0.1, 2.0),
        vf_prob=0.5,
        hf_prob=0.5,
        rr_prob=0.5,
        rr_degrees=45,
    )
    cores = len(os.sched_getaffinity(0))
    pictures = [Image.fromarray(tile) for tile in tiles]  # in memory: no decoding in their loop

    class Pictures(torch.utils.data.Dataset[list[torch.Tensor]]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            return list(transform(pictures[index]))

    loader = torch.utils.data.DataLoader(
        Pictures(),
        batch_size=case.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def endless() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def their_losses() -> None:
        x = torch.cat([view.to(device, non_blocking=True) for view in next(batches)])
        a, b = theirs.project(x.to(memory_format=torch.channels_last))
        nt_xent(a, b).backward()  # type: ignore[no-untyped-call]

    # Their workers go on while ours steps, so turns would give them time for nothing: each has the machine to itself.
    taken = {"ours": stretch(ours, seconds=seconds / 2)}
    taken["theirs"] = stretch(lambda: theirs.step(their_losses), seconds=seconds / 2)
    again = stretch(ours, seconds=seconds / 4)
    batches.close()  # type: ignore[attr-defined]
    return [
        row(
            what,
            ours=case.batch_size / taken["ours"],
            peer=f"lightly {lightly.__version__}",
            theirs=case.batch_size / taken["theirs"],
            unit="tiles/s",
            ratio=taken["theirs"] / taken["ours"],
            target=target,
            note=f"in turn, {cores} workers, theirs from PIL tiles in memory; ours again afterwards: "
            f"{case.batch_size / again:.4g} tiles/s",
        )
    ]


def stretch(run: Callable[[], object], *, seconds: float) -> float:
    """Return the mean seconds a call over a while, after two calls that do not count."""
    import time

    for _ in range(2):
        run()
    finish()
    started, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - started < seconds:
        run()
        calls += 1
    finish()
    return (time.perf_counter() - started) / calls


def caching(case: Case, *, device: torch.device, quick: bool, seconds: float) -> list[dict[str, Any]]:
    """Gradient caching: its time against the uncached step, and the memory of a batch of 4,096 pairs."""
    tiles, part = some_tiles(case), case.batch_size // (4 if device.type == "cuda" else 2)
    _, cached = our_step(case, tiles, device=device, microbatch=part)
    _, whole = our_step(case, tiles, device=device)
    taken = race({"cached": cached, "whole": whole}, seconds=seconds)
    found = [
        row(
            f"gradient caching, time, {case} in microbatches of {part}",
            ours=1e3 * taken["cached"],
            peer="the uncached step",
            theirs=1e3 * taken["whole"],
            unit="ms a step",
            ratio=taken["cached"] / taken["whole"],
            target="<= 1.4",
        )
    ]
    what = "gradient caching, memory, 4,096 pairs of ResNet50 at 224 px"
    large = Case("resnet50", "standard", 224, 4096)
    if device.type != "cuda" or quick:
        model = training(Case("resnet50", "standard", 224, 32), device=torch.device("cpu")).model
        needed = memory.activation_bytes(model, shape=(64, 3, 224, 224), device_type="cpu", precision="bf16") / 2**30
        note = f"needs a GPU; activations of 32 pairs, counted from shapes: {needed:.1f} GiB"
        return [*found, row(what, unit="GiB", target=f"<= {LIMIT_GIB}", note=note)]
    with tempfile.TemporaryDirectory() as folder:
        tiles = np.lib.format.open_memmap(
            Path(folder) / "tiles.npy", mode="w+", dtype=np.uint8, shape=(4096, 224, 224, 3)
        )
        tiles[:] = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        _, step = our_step(large, tiles, device=device, microbatch=32)
        torch.cuda.reset_peak_memory_stats()
        step()
        finish()
        used = torch.cuda.max_memory_allocated() / 2**30
    return [*found, row(what, ours=used, unit="GiB", ratio=used, target=f"<= {LIMIT_GIB}", note="microbatches of 32")]


__all__ = ["measure"]

"""The pretraining step: against the same step on tensors already on the device, and against lightly's loop."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from sscl.train import optim
from sscl.train.step import STEPS_AT_ONCE, ContrastiveStep, Drawn, Views, similarities

SECONDS, QUICK_SECONDS = 40.0, 0.1


@dataclass(frozen=True)
class Case:
    """A model at a tile size."""

    encoder: str
    stem: str
    size_px: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.encoder} at {self.size_px} px, {self.batch_size} tiles"


USUAL = Case("resnet18", "standard", 64, 64)
QUICK = Case("timm:test_resnet", "standard", 16, 4)


def measure(*, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of this topic, those that a CPU can answer; scripts/gpu_check measures what needs a GPU."""
    case, seconds = (QUICK, QUICK_SECONDS) if quick else (USUAL, SECONDS)
    return [
        *against_synthetic(case, device=device, seconds=seconds),
        *against_lightly(case, device=device, seconds=seconds),
        caching(case, device=device, part=case.batch_size // 2, seconds=seconds),
    ]


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
    scaler: torch.amp.GradScaler  # of fp16; multiplies by nothing otherwise

    def project(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projections of views (2N, 3, H, W)."""
        with autocast(self.device, self.precision):
            a, b = self.model(views).chunk(2)
        return a, b

    def step(self, losses_of: Callable[[], Any]) -> None:
        """Take a step down the losses."""
        self.optimizer.zero_grad(set_to_none=True)
        losses_of()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def training(case: Case, *, device: torch.device, precision: str = "auto") -> Training:
    """Return an untrained model and its optimizer."""
    torch.manual_seed(0)
    encoder = build_encoder(case.encoder, stem=case.stem)
    projection = build_projection(encoder.num_features, kind="mlp")
    model = ContrastiveModel(encoder, projection=projection).to(device).to(memory_format=torch.channels_last)
    groups = optim.parameter_groups(model, learning_rate=0.01, weight_decay=5e-4)
    precision = pick_precision(precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Training(model.train(), optim.build_optimizer("sgd", groups), precision, device, scaler)


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
    case: Case, tiles: NDArray[np.uint8] | np.memmap, *, device: torch.device, precision: str = "auto", **options: Any
) -> tuple[Training, Callable[[], None]]:
    """Return a training and its next step from the tiles, as `sscl pretrain` takes it."""
    own = training(case, device=device, precision=precision)
    views = views_on(device, case, precision=own.precision)
    contrast = ContrastiveStep(own.model, views=views, scaler=own.scaler, **options)
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


def synthetic_step(case: Case, *, device: torch.device, precision: str = "auto") -> Callable[[], None]:
    """Return a step on views that are there already: the least that training can take."""
    own = training(case, device=device, precision=precision)
    x = torch.randn(2 * case.batch_size, 3, case.size_px, case.size_px, device=device)
    x = x.to(memory_format=torch.channels_last)

    def losses() -> None:
        a, b = own.project(x)
        loss, _ = nt_xent(a, b), similarities(a, b)
        own.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    return lambda: own.step(losses)


def against_synthetic(case: Case, *, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Race the whole step, from the store on, with the step on synthetic tensors; of the rest, where it goes."""
    own, ours = our_step(case, some_tiles(case), device=device)
    contenders: dict[str, Callable[[], object]] = {"ours": ours, "synthetic": synthetic_step(case, device=device)}
    images = torch.from_numpy(some_tiles(case)[: case.batch_size]).to(device)
    contenders["views"] = views_of(images, case, precision=own.precision)
    order = np.arange(case.batch_size)[None].repeat(2, 0)
    store = place_store(some_tiles(case), device=device, budget_gb=4)
    contenders["data"] = lambda: [*store.batches(order)]
    taken = race(contenders, seconds=seconds)
    at = f"{case}, {own.precision}"
    return [
        row(
            f"pretraining against synthetic tensors, {at}",
            ours=2 * case.batch_size / taken["ours"],
            peer="the same step on synthetic tensors",
            theirs=2 * case.batch_size / taken["synthetic"],
            unit="views/s",
            ratio=taken["synthetic"] / taken["ours"],
            target=">= 0.95",
        ),
        row(
            f"augmentation, fraction of the step, {at}",
            ours=taken["views"] / taken["ours"],
            unit="of the step",
            ratio=taken["views"] / taken["ours"],
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


def views_of(images: torch.Tensor, case: Case, *, precision: str, steps: int = 1) -> Callable[[], None]:
    """Return what draws the views of so many steps and makes them, both of each image, uint8 (N, H, W, 3)."""
    views = views_on(images.device, case, precision=precision)
    rows = torch.arange(len(images), device=images.device).expand(steps, -1)

    def run() -> None:
        for drawn in views.steps(rows, torch.zeros_like(rows), epoch=0):
            views.render(images, drawn)

    return run


def against_lightly(case: Case, *, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Race our loop with lightly's SimCLR transform in torch's DataLoader, on the same model and loss."""
    what = f"pretraining against lightly's loop, {case}"
    target = ">= 1" if device.type == "cpu" else ">= 3"
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
            return 8 * cores * case.batch_size  # a worker makes whole batches: fewer would leave workers idle

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            return list(transform(pictures[index % len(pictures)]))

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
        theirs.scaler.scale(nt_xent(a, b)).backward()  # type: ignore[no-untyped-call]

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


def caching(case: Case, *, device: torch.device, part: int, seconds: float) -> dict[str, Any]:
    """Return the row of gradient caching's time against the uncached step."""
    tiles = some_tiles(case)
    taken = {}
    for name, microbatch in (("cached", part), ("whole", None), ("cached again", part)):
        _, run = our_step(case, tiles, device=device, microbatch=microbatch)
        taken[name] = stretch(run, seconds=seconds / 3)
        del run  # one training at a time is in memory
    cached = (taken["cached"] + taken["cached again"]) / 2
    return row(
        f"gradient caching, time, {case} in microbatches of {part}",
        ours=1e3 * cached,
        peer="the uncached step",
        theirs=1e3 * taken["whole"],
        unit="ms a step",
        ratio=cached / taken["whole"],
        target="<= 1.4",
    )


__all__ = ["measure"]

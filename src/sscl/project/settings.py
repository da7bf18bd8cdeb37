"""Settings that fit a set of tiles and a machine, each with why.

What is chosen is small enough to end: `minutes` of pretraining, measured with some steps of the encoder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from sscl.device import autocast, describe_device, free_memory, pick_precision, tune
from sscl.models.encoders import build_encoder
from sscl.models.resnet import SMALL
from sscl.project.look import Found, Sizes
from sscl.train.memory import activation_bytes
from sscl.words import count, readable

CPU_PX, GPU_PX = 96, 224  # largest sides that are trained on
CPU_BATCH, GPU_BATCH, LEAST_BATCH = 64, 256, 8  # largest batches, and the smallest
PART_OF_MEMORY = 0.6  # of what is free
LARGE_ENCODER_BYTES = 8 * 2**30  # of GPU memory, for a ResNet50 at 224 px
MOST_EPOCHS, MOST_LABELLED_EPOCHS, LEAST_EPOCHS = 200, 50, 5
LEAST_STEPS = 20  # of an epoch with labels
LEAST_TILES = 8
FEW_TILES = 2000
# Views, health metrics and checkpoints take their time too.
BESIDES_STEPS = 1.35


@dataclass(frozen=True)
class Machine:
    """Where is trained: the device, its precision, and the bytes that are free there (None: not known)."""

    device: torch.device
    precision: str
    free: int | None

    @property
    def on_gpu(self) -> bool:
        """Whether it is no processor."""
        return self.device.type != "cpu"

    def __str__(self) -> str:
        free = "" if self.free is None else f", {readable(self.free)} free"
        return f"{describe_device(self.device)}{free}, precision {self.precision}"


@dataclass(frozen=True)
class Encoder:
    """Which encoder, at which size of tiles, and why."""

    name: str
    stem: str
    size_px: int
    why_name: str
    why_size: str


@dataclass(frozen=True)
class Plan:
    """The numbers of both trainings, and why.

    Attributes:
        batch_size, epochs: of pretraining. seconds: that it will take, as measured.
        labelled_batch_size, labelled_epochs: of fine-tuning; steps: of its epoch, None = one pass over the tiles.
    """

    batch_size: int
    why_batch: str
    epochs: int
    why_epochs: str
    seconds: float
    labelled_batch_size: int
    labelled_epochs: int
    steps: int | None

    def in_words(self) -> str:
        minutes = self.seconds / 60
        lasts = f"{minutes / 60:.1f} hours" if minutes > 90 else count(max(1, round(minutes)), "minute")
        return f"pretraining: {count(self.epochs, 'epoch')}, about {lasts} here"


def machine(device: torch.device) -> Machine:
    """Return what a device has to train with."""
    tune(device)
    return Machine(device, pick_precision("auto", device), free_memory(device))


def choose_encoder(sizes: Sizes, where: Machine, *, size_px: int | None = None) -> Encoder:
    """Return an encoder that fits the files and the machine.

    Args:
        size_px: to train on; None = chosen here.
    """
    most = GPU_PX if where.on_gpu else CPU_PX
    why_size = "as given"
    if sizes.slides is not None:
        size_px, why_size = sizes.usual, "as the index has them"
        if not where.on_gpu and size_px > most:
            why_size += f"; for a CPU, index the slides again with size_px={most}"
    elif size_px is None:
        size_px = max(16, min(sizes.usual, most))
        if sizes.usual <= most:
            why_size = "as the files are" if size_px == sizes.usual else "the least"
        else:
            place = "enough to see cells, and what encoders are made for" if where.on_gpu else "small enough for a CPU"
            why_size = f"the files have {sizes.usual} px; {place}; larger is slower and sees more"
    if size_px <= 40:
        return Encoder("resnet18_pathmnist", "standard", size_px, "made for tiles of 28 px", why_size)
    if where.on_gpu and size_px >= 160 and (where.free or 0) >= LARGE_ENCODER_BYTES:
        return Encoder("resnet50", "standard", size_px, "the GPU has the memory; resnet18 is faster", why_size)
    if where.on_gpu and size_px < 96:
        return Encoder("resnet18", "small", size_px, "small, for small tiles", why_size)
    if not where.on_gpu and sizes.files is not None and sizes.files <= FEW_TILES:
        why = f"0.7 million weights, for a CPU and at most {FEW_TILES:,} tiles, and fine heatmaps; resnet18 is slower"
        return Encoder(SMALL, "standard", size_px, why, why_size)
    why = "small enough for this GPU" if where.on_gpu else "small enough for a CPU; resnet50 is slower"
    return Encoder("resnet18", "standard", size_px, why, why_size)


def plan(found: Found, encoder: Encoder, where: Machine, *, minutes: float) -> Plan:
    """Return batch sizes and epochs for a set of tiles.

    Args:
        minutes: of pretraining to aim at.

    Raises:
        ValueError: too few tiles to train on.
    """
    tiles, drawn, labelled = len(found.train), found.epoch_tiles, int((found.train.labels >= 0).sum())
    if tiles < LEAST_TILES:
        raise ValueError(
            f"data.root: {found.data.root} has {count(tiles, 'tile')} to train on; at least {LEAST_TILES} are needed, "
            "and hundreds for a result"
        )
    batch, why_batch = _batch_size(drawn, encoder, where)
    seconds = seconds_per_tile(encoder, where, batch_size=min(batch, 32)) * BESIDES_STEPS
    fitting = int(60 * minutes / (seconds * drawn))
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, fitting))
    if fitting >= MOST_EPOCHS:
        why_epochs = "more seldom help"
    elif fitting >= LEAST_EPOCHS:
        why_epochs = f"what fits into about {minutes:g} min here; more are better, up to {MOST_EPOCHS}"
    else:
        why_epochs = f"the least that is worth it; {minutes:g} min are too few for so many tiles"
    labelled_batch = max(LEAST_BATCH, min(batch, 64, labelled // 8 // 2 * 2))
    a_pass = max(1, labelled // labelled_batch)
    steps = LEAST_STEPS if a_pass < LEAST_STEPS else None
    seen = max(labelled, (steps or 0) * labelled_batch)
    labelled_fitting = int(60 * minutes / (seconds * max(1, seen)))  # one view at twice the cost: finer maps
    return Plan(
        batch_size=batch,
        why_batch=why_batch,
        epochs=epochs,
        why_epochs=why_epochs,
        seconds=seconds * drawn * epochs,
        labelled_batch_size=labelled_batch,
        labelled_epochs=min(MOST_LABELLED_EPOCHS, max(LEAST_EPOCHS, labelled_fitting)),
        steps=steps,
    )


def _batch_size(tiles: int, encoder: Encoder, where: Machine) -> tuple[int, str]:
    """Return the tiles of a pretraining step, and why: what fits the memory, and four steps an epoch or more."""
    most = GPU_BATCH if where.on_gpu else CPU_BATCH
    why = "each tile is told apart from all others of its batch; it fits the memory"
    view = bytes_per_view(encoder, where)
    fits = most
    while where.free is not None and fits > LEAST_BATCH and 2 * fits * view > PART_OF_MEMORY * where.free:
        fits //= 2
    if fits < most:
        why = f"{2 * fits} views take {readable(2 * fits * view)} of the {readable(where.free or 0)} that are free"
    trained = tiles - tiles // 5  # a fifth may be held out for the health metrics
    while fits > LEAST_BATCH and 4 * fits > trained:
        fits //= 2
        why = f"few, for {count(tiles, 'tile')}"
    return min(fits, trained), why


def bytes_per_view(encoder: Encoder, where: Machine) -> int:
    """Return what the forward pass of a view keeps of memory."""
    views, side = 8, encoder.size_px
    model = build_encoder(encoder.name, stem=encoder.stem)
    kept = activation_bytes(
        model, shape=(views, 3, side, side), device_type=where.device.type, precision=where.precision
    )
    return kept // views + 3 * side * side * 4


def seconds_per_tile(encoder: Encoder, where: Machine, *, batch_size: int) -> float:
    """Return what a tile of a pretraining step takes here, two views forward and backward, measured with some steps."""
    model = build_encoder(encoder.name, stem=encoder.stem).to(where.device).to(memory_format=torch.channels_last)
    shape = (2 * batch_size, 3, encoder.size_px, encoder.size_px)
    views = torch.rand(shape, device=where.device).contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(3):  # the first is slower
        begun = time.perf_counter()
        with autocast(where.device, where.precision):
            loss = model(views).float().square().mean()
        loss.backward()
        float(loss.detach())  # waits for the device
        if where.device.type == "cuda":
            torch.cuda.synchronize(where.device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:]) / batch_size

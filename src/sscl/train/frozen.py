"""Fine-tuning of the head alone: features of the training tiles' views, computed once, and what is said of them first.

N tiles a batch, k views of each of T training tiles, V validation tiles, C features; each of R ranks has N / R tiles of
a batch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cached_property, partial

import numpy as np
import torch

from sscl import ranks
from sscl.config import FinetuneConfig
from sscl.data.cache import cache_folder
from sscl.data.tiles import UNLABELLED, Tiles, TileStore, place_store
from sscl.evaluate.model_card import learned
from sscl.models import features
from sscl.models.classifier import inference_precision
from sscl.models.features import SYMMETRIES
from sscl.models.frozen import AS_IT_IS, FeatureKey, View, kept_features, pixels_of, symmetric_view
from sscl.models.start import Start
from sscl.train.labelled import LabelledTiles, Rows
from sscl.train.setup import OpenRun
from sscl.train.step import Views
from sscl.words import count, readable, wrapped


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """What the head learns from, and is validated on.

    Attributes:
        views: (k, T, C), on the device if they fit there. rows: of these tiles, (T,), ascending.
        validation: of the validation tiles as they are, (V, C), on the CPU.
        by_tile: whether the tiles of an epoch are in different views; random ones are that anyway.
    """

    views: torch.Tensor
    rows: Rows
    validation: torch.Tensor
    by_tile: bool

    def steps(self, order: Rows, repeats: Rows, *, epoch: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Yield the features of each step's tiles, (N / R, C) on the device: in each epoch the next view of a tile.

        Args:
            order: tiles, (steps, N / R). repeats: how often each came before in this epoch.
        """
        which = (epoch + repeats + (order if self.by_tile else 0)) % len(self.views)
        at = torch.from_numpy(np.stack([which, np.searchsorted(self.rows, order)], 1)).to(self.views.device)
        for view, tile in at:
            yield self.views[view, tile].to(device)


@dataclass(frozen=True, eq=False)
class Part:
    """Tiles that go through the encoder: these rows, ascending, of the tiles in the store."""

    tiles: Tiles
    store: TileStore
    rows: Rows

    @cached_property
    def pixels(self) -> str:
        return pixels_of(self.tiles, self.rows)

    def find(self, found: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the features of some of the rows out of those of all, (N, C)."""
        return found[torch.from_numpy(np.searchsorted(self.rows, rows))]


_LOGISTIC_BYTES = 24  # a number: float32 twice, with the validation tiles behind; in double; standardised
Wanted = tuple[Part, View]


def frozen_features(
    config: FinetuneConfig, opened: OpenRun, data: LabelledTiles, start: Start, *, views: Views
) -> FrozenFeatures:
    """Return the features of the views that train.frozen_views names, from the cache or computed; said before.

    All labelled tiles of the training split go through the encoder as they are, so that another seed, another fold and
    a probe find them; of random views, which belong to a seed, the training tiles alone. With several ranks the first
    of each machine computes.

    Args:
        start: its encoder on the device.

    Raises:
        ValueError: the features do not fit on the disk of the cache, or not into memory; the cache cannot be written;
            outputs that are not finite numbers.
    """
    budget_gb = opened.budget_gb(config.data.device_budget_gb)
    placed = partial(place_store, device=opened.device, budget_gb=budget_gb)
    train, validation = data.places[data.train], data.validation
    fraction = config.train.label_fraction < 1
    used = np.union1d(train, data.places[validation] if data.carved else train)
    store = placed(data.whole.images)
    labelled = Part(data.whole, store, used if fraction else np.flatnonzero(data.whole.labels != UNLABELLED))
    if config.train.frozen_views == "random":
        own = Part(data.whole, store, np.sort(train))
        wanted = [(own, random_view(views, number, own.rows)) for number in range(config.train.view_count)]
    else:
        numbers = range(SYMMETRIES if config.train.frozen_views == "symmetries" else 1)
        wanted = [(labelled, symmetric_view(number, mean=views.mean, std=views.std)) for number in numbers]
    held = labelled
    if not data.carved:
        rows = validation if fraction else np.flatnonzero(data.validation_tiles.labels != UNLABELLED)
        held = Part(data.validation_tiles, placed(data.validation_tiles.images), np.sort(rows))
    validated = (held, AS_IT_IS)

    precision = inference_precision("auto", opened.device, fitted=opened.precision)
    every = list(dict.fromkeys([*wanted, validated]))
    kept = {
        (part, view): FeatureKey(start.fingerprint, part.pixels, len(part.rows), precision, view=view.key)
        for part, view in every
    }
    check_room(config, opened, kept, width=start.encoder.num_features, table=len(wanted) * len(train))

    def computed(one: Wanted) -> torch.Tensor:
        part, view = one
        compute = partial(
            features.outputs,
            start.encoder,
            part.store,
            part.rows,
            mean=views.mean,
            std=views.std,
            batch_size=config.train.batch_size,
            precision=precision,
            view=view.make,
            progress=f"features, view {every.index(one) + 1} of {len(every)}" if opened.progress else None,
        )
        return kept_features(compute, kept[one], cache_dir=config.data.cache_dir)

    with ranks.first_on_each_machine():
        rows = np.sort(data.train)
        table = torch.empty(len(wanted), len(rows), start.encoder.num_features)
        for number, one in enumerate(wanted):
            table[number] = one[0].find(computed(one), data.places[rows])
        places = data.places[validation] if data.carved else validation
        held_out = held.find(computed(validated), places)
    fits = table.nbytes <= budget_gb * 2**30
    by_tile = config.train.frozen_views == "symmetries"
    return FrozenFeatures(table.to(opened.device) if fits else table, rows, held_out, by_tile=by_tile)


def random_view(views: Views, number: int, rows: Rows) -> View:
    """Return the view that training with frozen_views=each_epoch would see in an epoch, counted from 0.

    rows: the tiles that are looked at; what is drawn for a tile depends on its row.
    """

    def make(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        drawn = next(views.steps(rows[None], torch.zeros_like(rows[None]), epoch=number, count=1))
        return views.render(images, drawn)

    of = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    return View(("random", number, views.seed, astuple(views.augmentation), of), make)


def check_room(
    config: FinetuneConfig, opened: OpenRun, kept: dict[Wanted, FeatureKey], *, width: int, table: int
) -> None:
    """Print which features are used, how large they are, and how many of them are there; refuse too many.

    Args:
        kept: by part and view. width: C. table: rows of the features that stay in memory.

    Raises:
        ValueError: the disk of the cache, or memory, has less room than they take.
    """
    train, cache_dir = config.train, config.data.cache_dir
    folder = cache_folder(cache_dir)
    new = [key for key in kept.values() if not key.file(cache_dir).is_file()]
    size = 4 * width * sum(key.rows for key in new)
    held = (4 if train.head == "linear" else _LOGISTIC_BYTES) * width * table
    unused = "" if train.frozen_views == "random" else "; augment is not used"
    print(wrapped(f"trained: {learned(train)} (train.frozen_views={train.frozen_views}{unused})"))
    there = f"{len(kept) - len(new)} of {count(len(kept), 'pass', 'passes')} over the tiles in the cache"
    todo = f"{count(sum(key.rows for key in new), 'tile')} to compute, {readable(size)} in {folder}"
    print(wrapped(f"features: {there}; {todo if new else f'nothing to compute, from {folder}'}"))
    less = "set train.frozen_views=none" if train.frozen_views == "symmetries" else "lower train.view_count"
    less = "" if train.frozen_views == "none" else f"; or {less}"
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    if size > free:
        raise ValueError(
            f"data.cache_dir: {folder} has {readable(free)} free and the features take {readable(size)}; free some "
            f"space, or set data.cache_dir or $SSCL_CACHE to another folder{less}"
        )
    memory = opened.free if opened.device.type == "cpu" else None
    if memory is not None and held > memory:
        raise ValueError(
            f"train.frozen_views: the features take {readable(held)} of memory and {readable(memory)} are free; use "
            f"fewer training tiles{less}"
        )

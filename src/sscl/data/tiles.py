"""Tiles: the set every loader returns, its order in an epoch, and where its pixels wait for the device.

Shapes: N tiles, B tiles of one batch, H = W pixels. Tiles are uint8 NHWC; `permute(0, 3, 1, 2)` of that is
channels_last already, so nothing is copied on the way to the network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class Tiles:
    """A set of tiles with what is known about each.

    Args:
        images: uint8, (N, H, W, 3); may be a read-only memmap.
        labels: int64, (N,); index into `classes`, -1 = unlabelled.
        classes: class names; empty when nothing is labelled.
        ids: N unique names (a file name, or a posix path relative to the data folder).
        groups: str, (N,), slide or patient of each tile; None = unknown.
        votes: int64, (N,), annotators who chose class 1; None = not recorded.

    Raises:
        ValueError: a shape, a dtype, a label or the ids are not as above.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    groups: NDArray[np.str_] | None = None
    votes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != np.uint8:
            raise ValueError(f"images: expected uint8 (N, H, W, 3), got {self.images.dtype} {self.images.shape}")
        n = len(self.images)
        for name, values, kind in (
            ("labels", self.labels, np.int64),
            ("groups", self.groups, np.str_),
            ("votes", self.votes, np.int64),
        ):
            if values is not None and (values.shape != (n,) or not np.issubdtype(values.dtype, kind)):
                raise ValueError(
                    f"{name}: expected {kind.__name__} ({n},), one value per tile, got {values.dtype} {values.shape}"
                )
        if len(self.ids) != n or len(set(self.ids)) != n:
            raise ValueError(
                f"ids: expected {n} different ids, one per tile, "
                f"got {len(self.ids)} of which {len(set(self.ids))} differ"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: names repeat in {self.classes}")
        low, high = (int(self.labels.min()), int(self.labels.max())) if n else (UNLABELLED, UNLABELLED)
        if low < UNLABELLED or high >= len(self.classes):
            raise ValueError(
                f"labels: found {low} to {high}, allowed are -1 (unlabelled) to {len(self.classes) - 1} "
                f"for the {len(self.classes)} classes {self.classes}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: ArrayLike) -> Tiles:
        """Return the tiles at `indices` (ints, each at most once), in that order.

        A contiguous ascending range keeps a view of the pixels (a memmap stays a memmap); anything else
        copies its rows into memory.
        """
        rows = np.asarray(indices, dtype=np.int64)
        contiguous = len(rows) > 0 and bool((np.diff(rows) == 1).all()) and rows[0] >= 0
        images = self.images[rows[0] : rows[-1] + 1] if contiguous else np.asarray(self.images[rows])
        return Tiles(
            images=images,
            labels=self.labels[rows],
            classes=self.classes,
            ids=tuple(self.ids[row] for row in rows),
            groups=None if self.groups is None else self.groups[rows],
            votes=None if self.votes is None else self.votes[rows],
        )

    def class_counts(self) -> dict[str, int]:
        """Return tiles per class, in class order; `unlabelled` comes last, and only if there are any."""
        counts = {name: int((self.labels == index).sum()) for index, name in enumerate(self.classes)}
        unlabelled = int((self.labels == UNLABELLED).sum())
        return {**counts, "unlabelled": unlabelled} if unlabelled else counts

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits from the ids, labels, classes, tile size and the pixels of 64 tiles."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update("\n".join(self.ids).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for row in np.unique(np.linspace(0, len(self) - 1, 64).astype(np.int64)) if len(self) else ():
            digest.update(self.images[row].tobytes())
        return digest.hexdigest()


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of 0..n-1, int64 (n,): a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64, copy=False)


# --- where the pixels live during training ---


class TileStore:
    """Tiles of which any batch can be had on `device`; `place_store` makes it and decides where they wait."""

    def __init__(self, images: NDArray[np.uint8] | torch.Tensor, *, device: torch.device) -> None:
        self.images = images
        self.device = device

    @property
    def on_device(self) -> bool:
        """Whether all tiles lie in one tensor on the device."""
        return isinstance(self.images, torch.Tensor)

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the tiles at `indices` (int64, (B,), any device) as uint8 (B, H, W, 3) on the device."""
        if isinstance(self.images, torch.Tensor):
            return self.images[indices.to(self.device, non_blocking=True)]
        rows = indices.cpu().numpy()
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"tile {rows.min()} to {rows.max()} asked for, the store has {len(self)}")
        # Pinned memory lets the copy run beside the network; torch's caching allocator makes it cheap to ask
        # for each time and keeps the block until the copy is done.
        pin = self.device.type == "cuda"
        batch = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=pin)
        # mode="clip" (the range was checked above): mode="raise" would fill a second buffer first.
        np.take(self.images, rows, axis=0, out=batch.numpy(), mode="clip")
        return batch.to(self.device, non_blocking=True)


def place_store(images: NDArray[np.uint8], *, device: torch.device | str, budget_gb: float) -> TileStore:
    """Return a store of `images`, uint8 (N, H, W, 3), on the device if they fit there.

    On a CPU the array is used where it is (a memmap is read row by row and never loaded as a whole). On
    another device the tiles move there if they take at most `budget_gb` (GiB); else they stay and each batch
    is copied.
    """
    device = torch.device(device)
    if device.type == "cpu" or images.nbytes > budget_gb * 2**30:
        return TileStore(images, device=device)
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), 1024):
        # np.array: torch warns of read-only arrays, and a block at a time bounds the host's memory.
        block = np.array(images[start : start + 1024])
        resident[start : start + 1024] = torch.from_numpy(block).to(device)
    return TileStore(resident, device=device)

"""Files in the layout of MedMNIST, with the names of classes and groups that `sscl.data.pathmnist` reads, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_npz(path: Path | str, parts: Mapping[str, tuple[Any, Any, Any]], *, classes: Sequence[str]) -> None:
    """Write the images, labels (n,) and groups (or None) of train, val and test."""
    arrays = {"classes": np.array(classes)}
    for part, (images, labels, groups) in parts.items():
        arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None]}
        arrays |= {} if groups is None else {f"{part}_groups": groups}
    np.savez_compressed(path, allow_pickle=False, **arrays)

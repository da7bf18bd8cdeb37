"""A trained classifier out of its checkpoint, and what goes with it: normalisation, the positive class, what maps show.

K classes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sscl.config import DataConfig
from sscl.data.annotated import where_drawn
from sscl.data.tiles import UNLABELLED, Tiles
from sscl.device import pick_precision
from sscl.models.checkpoint import Checkpoint, load_checkpoint
from sscl.models.encoders import blank_encoder
from sscl.models.heads import Classifier
from sscl.models.tensors import misfits
from sscl.models.undrawn import Undrawn
from sscl.words import nearest, some


def blank_classifier(checkpoint: Checkpoint) -> Classifier:
    """Return the classifier of a finetune checkpoint with random weights."""
    return Classifier(blank_encoder(checkpoint), num_classes=len(checkpoint.classes))


def load_classifier(path: str | Path, *, device: torch.device) -> tuple[Classifier, Checkpoint]:
    """Return a finetune run's classifier, in evaluation mode on the device, and the facts of its checkpoint.

    Raises:
        FileNotFoundError: no such run or file.
        ValueError: truncated, not an sscl checkpoint, of another command, or with the tensors of another encoder.
    """
    checkpoint = load_checkpoint(path, kind="finetune")
    with Undrawn():
        classifier = blank_classifier(checkpoint)
    for name, part, state in (
        ("encoder", classifier.encoder, checkpoint.encoder),
        ("head", classifier.head, checkpoint.head),
    ):
        if faults := misfits(part, state):
            raise ValueError(f"{path}: {name}: does not fit {checkpoint.encoder_name} ({faults}); train again")
        part.load_state_dict(state)
    return classifier.to(device).to(memory_format=torch.channels_last).eval(), checkpoint.without_tensors()


def inference_precision(wanted: str, device: torch.device, *, fitted: str) -> str:
    """Return the precision in which a classifier is applied: that of its encoder, since logits are float32 in each.

    `auto` is the one in which finetune computed the logits that temperature and thresholds were fitted to. On a CPU it
    is fp32, and on a GPU that does not compute in that one, the GPU's own.

    Args:
        wanted: auto, fp32, bf16 or fp16. fitted: see `KeptCalibration.precision`; for finetune itself, the run's.

    Raises:
        ValueError: the device does not compute in the precision wanted.
    """
    if wanted != "auto":
        return pick_precision(wanted, device)
    if device.type == "cpu":
        return "fp32"
    try:
        return pick_precision(fitted, device)
    except ValueError:
        return pick_precision("auto", device)


def precision_notes(precision: str, *, fitted: str) -> list[str]:
    """Return what a reader must know where temperature and thresholds were fitted in another precision."""
    if precision == fitted:
        return []
    return [f"temperature and thresholds were fitted in {fitted} and are applied in {precision}"]


def positive_class(classes: tuple[str, ...], wanted: str | None) -> int | None:
    """Return the index of the positive class: the wanted one, else SSA, else the second of two; None beyond two.

    Raises:
        ValueError: no such class, or a wanted class where there are more than two.
    """
    if wanted is not None:
        if wanted not in classes:
            raise ValueError(f"positive: got {wanted!r}, allowed are {', '.join(classes)}")
        if len(classes) != 2:
            raise ValueError(f"positive: a positive class needs two classes, the checkpoint has {len(classes)}")
        return classes.index(wanted)
    if len(classes) != 2:
        return None
    return classes.index("SSA") if "SSA" in classes else 1


def with_classes_of(tiles: Tiles, classes: tuple[str, ...], *, checkpoint: str, data: DataConfig) -> Tiles:
    """Return the tiles with their labels in the order of a checkpoint's classes, matched by name.

    The set may have fewer classes, or the same ones in another order.

    Raises:
        ValueError: a class that the checkpoint does not know, or no classes at all.
    """
    root = data.root
    if tiles.classes == classes:
        return tiles
    if not tiles.classes:
        raise ValueError(
            f"data.root: {root} has no labels, so nothing can be measured; sscl predict classifies such tiles"
        )
    unknown = [name for name in tiles.classes if name not in classes]
    drawn = where_drawn(Path(data.annotations), unknown[0]) if unknown and data.annotations is not None else None
    if drawn is not None:
        raise ValueError(
            f"data.annotations: {drawn}: {unknown[0]} is no class of {checkpoint}, which knows {some(classes)}; rename "
            "it in QuPath, or remove its areas, and export again"
        )
    if unknown:
        raise ValueError(
            f"data.root: {root} has the classes {some(tiles.classes)}, but {checkpoint} was trained on "
            f"{some(classes)}; {unknown[0]} is not among them: {nearest(unknown[0], classes)}"
        )
    order = np.array([*(classes.index(name) for name in tiles.classes), UNLABELLED])  # -1 stays -1
    return replace(tiles, labels=order[tiles.labels], classes=classes)

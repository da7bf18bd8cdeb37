"""A trained classifier out of its checkpoint, and what goes with it: normalisation, the positive class, what maps show.

K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sscl.data.tiles import Tiles
from sscl.models.checkpoint import load_checkpoint
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier


def blank_classifier(content: dict[str, Any]) -> Classifier:
    """Return the classifier of a finetune checkpoint with random weights."""
    stride = content.get("output_stride", 32)  # older checkpoints do not say
    encoder = build_encoder(content["encoder_name"], stem=content["stem"], output_stride=stride)
    return Classifier(encoder, num_classes=len(content["classes"]))


def load_classifier(path: str | Path, *, device: torch.device) -> tuple[Classifier, dict[str, Any]]:
    """Return a finetune checkpoint's classifier, in evaluation mode on the device, and the checkpoint's content.

    Raises:
        FileNotFoundError: no such run or file.
        ValueError: truncated, not ours, or of another command.
    """
    content = load_checkpoint(path, kind="finetune")
    classifier = blank_classifier(content)
    classifier.encoder.load_state_dict(content["encoder"])
    classifier.head.load_state_dict(content["head"])
    return classifier.to(device).eval(), content


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


def check_classes(tiles: Tiles, content: dict[str, Any], *, checkpoint: str, root: str) -> None:
    """Raise ValueError unless the tiles have the classes, in order, that the checkpoint was trained on."""
    if list(tiles.classes) != content["classes"]:
        found = ", ".join(tiles.classes) or "none"
        raise ValueError(
            f"data.root: {root} has the classes {found}, but {checkpoint} was trained on "
            f"{', '.join(content['classes'])}"
        )

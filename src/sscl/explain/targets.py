"""Which score a map explains: the logit of a class, or the difference of two.

B tiles, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sscl.words import nearest, shortened

FloatArray = NDArray[np.float64]
LAST_FEATURES = "the last features"


class Score(Enum):
    """What is explained; the values are those of the configuration key `target`."""

    DIFFERENCE = "difference"  # the predicted class's logit minus that of the next likely class
    PREDICTED = "predicted"  # the predicted class's logit
    CLASS = "class"  # the logit of a class given by name


@dataclass(frozen=True)
class Target:
    """The score that maps explain. label: index of the class if the score is CLASS, else None."""

    score: Score
    label: int | None = None


DIFFERENCE = Target(Score.DIFFERENCE)
PREDICTED = Target(Score.PREDICTED)
AnyTarget = Target | int | tuple[int, int] | Tensor


def resolve_target(name: str, classes: Sequence[str]) -> Target:
    """Return the target that a configuration names: auto, difference, predicted, or a class.

    Raises:
        ValueError: no such class.
    """
    if name == "auto":
        return DIFFERENCE
    if name in ("difference", "predicted"):
        return Target(Score(name))
    if name not in classes:
        raise ValueError(f"target: got {name!r}, {nearest(name, ['auto', 'difference', 'predicted', *classes])}")
    return Target(Score.CLASS, list(classes).index(name))


def target_classes(logits: Tensor, target: AnyTarget) -> Tensor:
    """Return the class whose logit is each image's score, (B, 1), or the pair whose difference it is, (B, 2).

    Args:
        logits: (B, K).
        target: a `Target`; or a class; or (a, b) for logit a - logit b; or an integer tensor with a class, (B,), or a
            pair, (B, 2), per image.

    Raises:
        ValueError: it names no class.
    """
    batch, classes = logits.shape
    if isinstance(target, Target):
        if target.label is None:
            difference = target.score is Score.DIFFERENCE
            return logits.topk(2, dim=1).indices if difference else logits.argmax(dim=1, keepdim=True)
        target = target.label
    if isinstance(target, Tensor):
        shapes = (batch,), (batch, 1), (batch, 2)
        if tuple(target.shape) not in shapes or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(
                f"target: got a {target.dtype} tensor of shape {tuple(target.shape)}, must be integers of shape "
                f"({batch},), one class per image, or ({batch}, 2), a pair per image"
            )
        found = target.reshape(batch, -1)
        named = found.flatten().tolist()
    else:
        named = list(target) if isinstance(target, tuple) else [target]
        if isinstance(target, tuple) and (len(named) != 2 or named[0] == named[1]):
            raise ValueError(f"target: got {target}, must be a class or two different classes (a, b)")
        found = torch.tensor(named).expand(batch, -1)
    outside = [label for label in named if not 0 <= label < classes]
    if outside:
        raise ValueError(f"target: got class {outside[0]}, must lie within 0 to {classes - 1}")
    return found.to(logits.device, torch.int64)


def score_of(logits: Tensor, named: Tensor) -> Tensor:
    """Return the score of each image, (B,). named: from `target_classes`."""
    values = logits.gather(1, named)
    return values[:, 0] if named.shape[1] == 1 else values[:, 0] - values[:, 1]


def describe_layer(layers: Sequence[str], fuse: str) -> str:
    """Return which features are explained."""
    if not layers:
        return LAST_FEATURES
    return layers[0] if len(layers) == 1 else f"{', '.join(layers)} ({fuse})"


def describe_target(
    target: Target, classes: Sequence[str], probabilities: FloatArray, *, method: str, layers: Sequence[str], fuse: str
) -> str:
    """Return what a tile's map shows, such as "logit SSA - HP".

    Args:
        probabilities: of the tile, (K,).
        method, layers, fuse: see `cam.class_maps`.
    """
    layer = f" at {describe_layer(layers, fuse)}" if layers else ""
    if method == "eigencam":
        return f"main pattern of the features, independent of the class{layer}"
    first, second = np.argsort(-probabilities, kind="stable")[:2].tolist()
    if target.score is Score.DIFFERENCE:
        return f"logit {shortened(classes[first], 60)} - {shortened(classes[second], 60)}{layer}"
    return f"logit {shortened(classes[first if target.label is None else target.label], 60)}{layer}"


def describe_targets(target: Target, classes: Sequence[str], *, method: str) -> str:
    """Return what the maps of all tiles show."""
    if method == "eigencam":
        return "main pattern of the features, independent of the class"
    if target.score is Score.DIFFERENCE:
        other = "other" if len(classes) == 2 else "next likely class"
        return f"logit of the predicted class minus that of the {other}"
    return "logit of the predicted class" if target.label is None else f"logit of {classes[target.label]}"

"""Which score a map explains: the logit of a class, or what it has over one or several others.

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

from sscl.explain.kinds import WHATEVER_CLASS, MapKind
from sscl.words import nearest, shortened

FloatArray = NDArray[np.float64]


class Score(Enum):
    """What is explained; the values are those of the configuration key `target`."""

    DIFFERENCE = "difference"  # the predicted class's logit minus that of the next likely one, or ones
    PREDICTED = "predicted"  # the predicted class's logit
    CLASS = "class"  # the logit of a class given by name


@dataclass(frozen=True)
class Target:
    """The score that maps explain.

    Attributes:
        label: index of the class if the score is CLASS, else None.
        references: how many next likely classes DIFFERENCE compares with, as far as there are so many.
    """

    score: Score
    label: int | None = None
    references: int = 1


DIFFERENCE = Target(Score.DIFFERENCE)
PREDICTED = Target(Score.PREDICTED)
AnyTarget = Target | int | tuple[int, int] | Tensor


def resolve_target(name: str, classes: Sequence[str], *, references: int = 1) -> Target:
    """Return the target that a configuration names: auto, difference, predicted, or a class.

    Args:
        references: how many other classes the difference is to.

    Raises:
        ValueError: no such class.
    """
    if name in ("auto", "difference"):
        return Target(Score.DIFFERENCE, references=references)
    if name == "predicted":
        return PREDICTED
    if name not in classes:
        raise ValueError(f"target: got {name!r}, {nearest(name, ['auto', 'difference', 'predicted', *classes])}")
    return Target(Score.CLASS, list(classes).index(name))


def target_classes(logits: Tensor, target: AnyTarget) -> Tensor:
    """Return the class whose logit is each image's score, (B, 1), and those it is compared with, (B, 1 + others).

    Args:
        logits: (B, K).
        target: a `Target`; or a class; or (a, b) for logit a - logit b; or an integer tensor with a class, (B,), or a
            class and others, (B, 1 + others), per image.

    Raises:
        ValueError: it names no class.
    """
    batch, classes = logits.shape
    if isinstance(target, Target):
        if target.label is None:
            difference = target.score is Score.DIFFERENCE
            many = min(1 + target.references, classes)
            return logits.topk(many, dim=1).indices if difference else logits.argmax(dim=1, keepdim=True)
        target = target.label
    if isinstance(target, Tensor):
        shaped = target.shape[:1] == (batch,) and (target.ndim == 1 or (target.ndim == 2 and target.shape[1] >= 1))
        if not shaped or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(
                f"target: got a {target.dtype} tensor of shape {tuple(target.shape)}, must be integers of shape "
                f"({batch},), one class per image, or ({batch}, 1 + others), a class and those it is compared with"
            )
        found = target.reshape(batch, -1)
        if (found[:, 1:] == found[:, :1]).any():
            raise ValueError("target: got a class that is compared with itself, must be different classes")
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


def score_of(logits: Tensor, named: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return the score of each image, (B,): the logit of its class minus gamma times the mean of the others named.

    With one other class and gamma 1 it is the margin, in which nothing remains of what both classes share. Finer-CAM
    keeps a part of it: Zhang et al., arXiv:2501.11309, weigh the similar classes by 0.6 and compare with 3.

    Args:
        named: from `target_classes`.
    """
    values = logits.gather(1, named)
    return values[:, 0] if named.shape[1] == 1 else values[:, 0] - gamma * values[:, 1:].mean(1)


def describe_target(target: Target, classes: Sequence[str], probabilities: FloatArray, *, kind: MapKind) -> str:
    """Return what a tile's map shows, such as "logit SSA - HP".

    Args:
        probabilities: of the tile, (K,).
    """
    layer = f" at {kind.source}" if kind.layers else ""
    if kind.method in WHATEVER_CLASS:
        return f"{WHATEVER_CLASS[kind.method]}{layer}"
    order = np.argsort(-probabilities, kind="stable").tolist()
    if target.score is Score.DIFFERENCE:
        others = [shortened(classes[other], 60) for other in order[1 : 1 + target.references]]
        mean = others[0] if len(others) == 1 else f"mean({', '.join(others)})"
        weight = "" if kind.gamma == 1 else f"{kind.gamma:g} x "
        return f"logit {shortened(classes[order[0]], 60)} - {weight}{mean}{layer}"
    return f"logit {shortened(classes[order[0] if target.label is None else target.label], 60)}{layer}"


def describe_targets(target: Target, classes: Sequence[str], *, kind: MapKind) -> str:
    """Return what the maps of all tiles show."""
    if kind.method in WHATEVER_CLASS:
        return WHATEVER_CLASS[kind.method]
    if target.score is Score.DIFFERENCE:
        return difference_in_words(len(classes), references=target.references, gamma=kind.gamma)
    return "logit of the predicted class" if target.label is None else f"logit of {classes[target.label]}"


def difference_in_words(classes: int | None = None, *, references: int, gamma: float) -> str:
    """Return what target=difference explains. classes: how many there are, None = unknown."""
    number = references if classes is None else min(references, classes - 1)
    weight = "" if gamma == 1 else f"{gamma:g} times "
    if number > 1:
        return f"logit of the predicted class minus {weight}the mean of those of the next likely {number}"
    other = "other" if classes == 2 else "next likely class"
    return f"logit of the predicted class minus {weight}that of the {other}"

"""Kinds of maps: by which method, of which layers, of which score; and how each is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sscl.words import nearest

METHODS = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "eigencam": "EigenCAM",
    "legrad": "LeGrad",
    "rollout": "Attention rollout",
    "gradrollout": "Attention rollout with gradients",
}
COMPLETE = ("gradcam", "hirescam")  # their maps of the last features sum to the score, see `cam.unexplained`
OF_ATTENTION = ("legrad", "rollout", "gradrollout")  # of transformers alone, see `attention`
WHATEVER_CLASS = {
    "eigencam": "main pattern of the features, independent of the class",
    "rollout": "attention from the feature back to the tile, independent of the class",
}
FUSIONS = ("max", "mean", "sum")
LAST_FEATURES = "the last features"


@dataclass(frozen=True)
class MapKind:
    """How maps are made.

    Attributes:
        method: one of METHODS.
        layers: modules of the model by name, such as encoder.layer3.1; empty = the method's own.
        fuse: how the maps of several layers become one, of FUSIONS; LeGrad always takes the mean.
        gamma: weight of the other classes in a score that compares, see `targets.score_of`.

    Raises:
        ValueError: an unknown method or fusion, or layers where the method takes all blocks.
    """

    method: str = "gradcam"
    layers: tuple[str, ...] = ()
    fuse: str = "max"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_name("method", self.method, tuple(METHODS))
        check_name("fuse", self.fuse, FUSIONS)
        if self.layers and self.method in ("rollout", "gradrollout"):
            raise ValueError(f"layer: {self.method} goes through all blocks; leave layer out")

    @property
    def in_logits(self) -> bool:
        """Whether the cells are logits, which sum to the score for a model that ends in a linear layer."""
        return self.method in COMPLETE and not self.layers

    @property
    def source(self) -> str:
        """What the maps are made of."""
        if self.method in OF_ATTENTION:
            return ", ".join(self.layers) if self.layers else "all blocks"
        if not self.layers:
            return LAST_FEATURES
        return self.layers[0] if len(self.layers) == 1 else f"{', '.join(self.layers)} ({self.fuse})"

    def __str__(self) -> str:
        return f"{METHODS[self.method]} of {self.source}"


def check_name(key: str, name: str, allowed: Sequence[str]) -> None:
    """Raise ValueError, with the nearest names, unless a name is allowed."""
    if name not in allowed:
        raise ValueError(f"{key}: got {name!r}, {nearest(name, allowed)}")


GRADCAM = MapKind()

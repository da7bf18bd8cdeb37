"""From settings to the maps of a model: which score they explain, and which kind of maps its encoder allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from sscl.config.maps import MapConfig
from sscl.explain.kinds import OF_ATTENTION, MapKind
from sscl.explain.layers import layers_that_matter
from sscl.explain.targets import Score, Target, resolve_target


def chosen_maps(config: MapConfig, classes: Sequence[str], model: nn.Module) -> tuple[Target, MapKind]:
    """Return the score and the kind of maps that settings ask for.

    Raises:
        ValueError: no such class; weights of other classes where the score has none; a method unknown.
    """
    target = resolve_target(config.target, classes, references=config.references)
    if target.score is not Score.DIFFERENCE:
        for key, value, default in (("gamma", config.gamma, 1), ("references", config.references, 1)):
            if value != default:
                raise ValueError(
                    f"{key}: is about the other classes of target=difference, got {value:g} with target={config.target}"
                )
    kind = MapKind(config.method, tuple(config.layer), config.fuse, config.gamma)
    return target, of_model(kind, model)


def of_model(kind: MapKind, model: object) -> MapKind:
    """Return the kind with the layers named that a model's maps are of, where these are not the last features.

    So it is in transformers whose feature has the class token, see `layers.layers_that_matter`. The maps of two are
    added up; the main pattern, EigenCAM's, has no such parts, and one is enough.
    """
    if kind.layers or kind.method in OF_ATTENTION:
        return kind
    layers = layers_that_matter(model)
    if len(layers) > 1:
        return (
            replace(kind, layers=layers[:1]) if kind.method == "eigencam" else replace(kind, layers=layers, fuse="sum")
        )
    return replace(kind, layers=layers)

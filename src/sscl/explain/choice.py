"""From settings to the maps of a model: which score they explain, and which kind of maps its encoder allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from sscl.config.maps import MapConfig
from sscl.explain.kinds import OF_ATTENTION, WHATEVER_CLASS, MapKind
from sscl.explain.layers import layers_that_matter
from sscl.explain.targets import Score, Target, resolve_target

OF_A_SCORE = ("target", "gamma", "references")  # settings that say which classes a map explains


def chosen_maps(config: MapConfig, classes: Sequence[str], model: nn.Module) -> tuple[Target, MapKind]:
    """Return the score and the kind of maps that settings ask for.

    Raises:
        ValueError: see `weighed`; a method unknown.
    """
    target, kind = asked_maps(config, classes)
    return target, of_model(kind, model)


def asked_maps(config: MapConfig, classes: Sequence[str]) -> tuple[Target, MapKind]:
    """Return what `chosen_maps` does, of whatever model."""
    target = weighed(config.target, classes, method=config.method, gamma=config.gamma, references=config.references)
    return target, MapKind(config.method, tuple(config.layer), config.fuse, config.gamma)


def weighed(name: str, classes: Sequence[str], *, method: str, gamma: float, references: int) -> Target:
    """Return the score of that name, see `targets.resolve_target`.

    Raises:
        ValueError: no such class; weight or number of other classes where the score has none, or fewer; any of these
            where the method is the same for every class.
    """
    if method in WHATEVER_CLASS:
        for key, value in zip(OF_A_SCORE, (name, gamma, references), strict=True):
            if value != MapConfig.model_fields[key].default:
                raise ValueError(f"{key}: {method} is the same for every class, got {value}; leave {key} out")
    target = resolve_target(name, classes, references=references)
    if target.score is Score.DIFFERENCE and references >= len(classes):
        raise ValueError(f"references: got {references}, must be below {len(classes)}, the number of classes")
    if target.score is not Score.DIFFERENCE:
        for key, value in (("gamma", gamma), ("references", references)):
            if value != 1:
                raise ValueError(f"{key}: is about the other classes of target=difference, got {value:g} with {name}")
    return target


def changed(kept: Mapping[str, object], asked: Mapping[str, object]) -> dict[str, object]:
    """Return settings of maps with those asked for in place of what was kept.

    Layers go with a method of attention: what a map of features was of is nothing to it, nor the other way round. A
    kept score goes with a method that is the same for every class.
    """
    found = {**kept, **asked}
    methods = {str(of.get("method", "gradcam")) for of in (kept, found)}
    if len(methods) > 1 and methods & set(OF_ATTENTION) and "layer" not in asked:
        found["layer"] = []
    if found.get("method") in WHATEVER_CLASS:
        found = {key: value for key, value in found.items() if key in asked or key not in OF_A_SCORE}
    return found


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

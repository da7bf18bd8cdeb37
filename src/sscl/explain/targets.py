"""Which score a map explains: a class, or the difference of two."""

from __future__ import annotations

from collections.abc import Sequence

from sscl.explain import cam

LAST_FEATURES = "the last features"


def resolve_target(target: str, classes: Sequence[str]) -> str | int:
    """Return "difference", "predicted", or the index of a named class.

    Raises:
        ValueError: no such class, or a difference of more than two.
    """
    if target == "auto":
        return "difference" if len(classes) == 2 else "predicted"
    if target == "difference" and len(classes) != 2:
        raise ValueError(f"target: difference needs two classes, the checkpoint has {len(classes)}; use predicted")
    if target in ("difference", "predicted"):
        return target
    if target not in classes:
        raise ValueError(f"target: got {target!r}, allowed are auto, difference, predicted, {', '.join(classes)}")
    return list(classes).index(target)


def target_of(resolved: str | int) -> cam.Target:
    """Return what `resolve_target` gave as `cam.class_maps` takes it."""
    return cam.margin if resolved == "difference" else None if resolved == "predicted" else int(resolved)


def describe_layer(layers: Sequence[str], fuse: str) -> str:
    """Return which features are explained."""
    if not layers:
        return LAST_FEATURES
    return layers[0] if len(layers) == 1 else f"{', '.join(layers)} ({fuse})"


def describe_target(
    target: str,
    classes: Sequence[str],
    predicted: int,
    *,
    method: str = "gradcam",
    layers: Sequence[str] = (),
    fuse: str = "max",
) -> str:
    """Return what a tile's map is the map of.

    Args:
        target: as `resolve_target` takes it. predicted: index of the tile's likeliest class.
        method, layers, fuse: see `cam.class_maps`.
    """
    layer = f" at {describe_layer(layers, fuse)}" if layers else ""
    if method == "eigencam":
        return f"the features' main pattern, whatever the class{layer}"
    wanted = resolve_target(target, classes)
    if wanted == "difference":
        return f"logit {classes[predicted]} - {classes[1 - predicted]}{layer}"
    return f"logit {classes[predicted if wanted == 'predicted' else int(wanted)]}{layer}"

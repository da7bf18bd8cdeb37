"""Grad-CAM on a ResNet50: time and values against pytorch-grad-cam and torchcam, on the same model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from race import race
from sscl.explain.cam import grad_cam
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier

TARGET = 1  # the class that is explained


def measure(*, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of this topic."""
    encoder, batch, size_px = ("resnet18", 2, 64) if quick else ("resnet50", 8, 224)
    torch.manual_seed(0)
    model = Classifier(build_encoder(encoder), num_classes=2).to(device).eval()
    images = torch.randn(batch, 3, size_px, size_px, device=device)
    peers = {name: peer(copy.deepcopy(model)) for name, peer in PEERS.items()}  # their hooks stay in their copies
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: grad_cam(model, images, target=TARGET)}
    contenders |= {name: partial(run, images) for name, run in peers.items() if run is not None}
    taken = race(contenders, seconds=0.2 if quick else 60.0)
    maps, _ = grad_cam(model, images, target=TARGET)
    found: list[dict[str, Any]] = []
    for name, run in peers.items():
        what = f"{encoder} at {size_px} px, {batch} tiles"
        missing = None if run is not None else f"{name} is not installed; scripts/bench installs it"
        row: dict[str, Any] = {
            "what": f"Grad-CAM, {what}",
            "ours": 1e3 * taken["ours"],
            "unit": "ms",
            "target": TIMES[name],
        }
        values: dict[str, Any] = {
            "what": f"Grad-CAM, largest difference of maps within 0 to 1, {what}",
            "unit": "",
            "theirs": None,
        }
        values |= {"ours": None, "ratio": None, "target": "<= 1e-05"}
        if run is None:
            row |= {"peer": name, "theirs": None, "ratio": None, "note": missing}
            values |= {"peer": name, "note": missing}
        else:
            peer_name = f"{name} {version(name)}"
            row |= {"peer": peer_name, "theirs": 1e3 * taken[name], "ratio": taken[name] / taken["ours"], "note": ""}
            values |= {"peer": peer_name, "note": "", "ours": difference(maps, run(images))}
        found += [row, values]
    return found


def pytorch_grad_cam(model: Classifier) -> Callable[[Tensor], Any] | None:
    """Return pytorch-grad-cam's maps of images, (B, H, W); None where it is not installed."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        return None
    extractor = GradCAM(model, [list(model.encoder.get_submodule("layer4").children())[-1]])
    return lambda images: extractor(images, [ClassifierOutputTarget(TARGET)] * len(images))


def torchcam(model: Classifier) -> Callable[[Tensor], Any] | None:
    """Return torchcam's maps of images, (B, h, w); None where it is not installed."""
    try:
        from torchcam.methods import GradCAM
    except ImportError:
        return None
    extractor = GradCAM(model, model.encoder.get_submodule("layer4"))
    return lambda images: extractor([TARGET] * len(images), model(images))[0]


PEERS = {"grad-cam": pytorch_grad_cam, "torchcam": torchcam}
TIMES = {"grad-cam": ">= 3", "torchcam": ">= 1"}


def difference(maps: Tensor, theirs: Any) -> float:
    """Return the largest difference of maps, ours raw (B, h, w), theirs within 0 to 1 at their own size."""
    positive = maps.clamp(min=0).double().cpu().numpy()
    theirs = np.asarray(theirs.detach().cpu() if isinstance(theirs, Tensor) else theirs)
    return float(max(np.abs(scaled(a, size=b.shape[0]) - b).max() for a, b in zip(positive, theirs, strict=True)))


def scaled(cam: NDArray[np.float64], *, size: int) -> NDArray[np.float64]:
    """Return a map (h, w) as both show it: its range becomes 0 to 1, and once more after enlarging."""
    import cv2

    unit: NDArray[np.float64] = (cam - cam.min()) / (cam.max() - cam.min())
    if size == len(cam):
        return unit
    large = np.asarray(cv2.resize(unit, (size, size)))
    scaled_again: NDArray[np.float64] = (large - large.min()) / (large.max() - large.min())
    return scaled_again

"""A classifier as the folder that WSInfer and its QuPath extension read: torchscript_model.pt and config.json.

Both resize the square of a slide to `patch_size_pixels`, divide by 255 (the entries Resize and ToTensor) and take the
softmax of what the file gives. So the file normalises and divides by the temperature itself, and that softmax is the
calibrated probability. Without an entry Normalize nothing else has to know the means.
B tiles, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sscl.models import timm_folder
from sscl.models.exported import Exported
from sscl.writing import write_json

GRAPH, CONFIG = "torchscript_model.pt", "config.json"  # the names that both look for


class FromPixels(nn.Module):
    """A classifier of tiles with values in 0-1; the softmax of its outputs is the calibrated probability."""

    mean: torch.Tensor
    std: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        assert exported.head is not None, "no classifier"
        self.encoder, self.head = exported.encoder, exported.head
        # As float32 buffers they follow the model to any device: a plain number is traced as float64, which MPS lacks.
        for name, values in (("mean", exported.mean), ("std", exported.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("temperature", torch.tensor(temperature_of(exported), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits over the temperature, (B, 3, S, S) in 0-1 -> (B, K)."""
        logits: torch.Tensor = self.head(self.encoder((x - self.mean) / self.std))
        return logits / self.temperature


def temperature_of(exported: Exported) -> float:
    assert exported.decisions is not None, "no classifier"
    return exported.decisions.temperature


def write_config(exported: Exported, path: Path) -> None:
    """Write config.json by the schema of WSInfer's zoo: model-config.schema.json, version 1.0."""
    content = {
        "spec_version": "1.0",
        "architecture": _architecture(exported),
        "num_classes": len(exported.classes),
        "patch_size_pixels": exported.size_px,
        "spacing_um_px": exported.scale.mpp,
        "class_names": list(exported.classes),
        "transform": [{"name": "Resize", "arguments": {"size": exported.size_px}}, {"name": "ToTensor"}],
    }
    write_json(path, content)


def _architecture(exported: Exported) -> str:
    """Return timm's name of the encoder, ours where timm has none; nothing is built by it."""
    try:
        return timm_folder.architecture(exported)[0]
    except timm_folder.NoEqual:
        return exported.encoder.name


def notes(exported: Exported) -> list[str]:
    """Return what whoever uses the folder must know, a sentence each."""
    decisions, scale = exported.decisions, exported.scale
    assert decisions is not None, "no classifier"
    alone = "the confidence to abstain below is"
    if decisions.threshold is not None:
        alone = f"the threshold of {decisions.positive} and the confidence to abstain below are"
    found = [f"WSInfer and QuPath call the most probable class: {alone} in classifier.json alone"]
    if scale.mpp_range:
        found.append(f"spacing_um_px is the median: the tiles of training had {scale}")
    return found

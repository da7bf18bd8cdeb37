"""How pixels reach an encoder: the channel means and standard deviations that go with its weights."""

from __future__ import annotations

import torch

from sscl.config.encoders import TIMM
from sscl.config.published import PUBLISHED
from sscl.models.checkpoint import Checkpoint
from sscl.models.encoders import check_name
from sscl.models.timm_models import extra

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# EfficientNet-lite expects (pixel - 127) / 128, pixels in 0..255 (its authors' lite/efficientnet_lite_builder.py).
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3


def preprocessing_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel means and standard deviations, of pixels in 0-1, that an encoder expects.

    They are those of random and of ImageNet's weights; a file of weights may say others (`weights.read_trunk`).

    Args:
        name: as for `build_encoder`.

    Raises:
        ValueError: an unknown name, or a package missing.
    """
    check_name(name)
    if name == "efficientnet_lite0":
        return LITE_MEAN, LITE_STD
    if name in PUBLISHED:
        return PUBLISHED[name].normalisation
    if name.startswith(TIMM):
        config = extra("timm", extra="timm").get_pretrained_cfg(name.removeprefix(TIMM))
        return tuple(config.mean), tuple(config.std)
    return IMAGENET_MEAN, IMAGENET_STD


def normalisation(checkpoint: Checkpoint, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a checkpoint's channel means and standard deviations as tensors (3,) on the device."""
    return torch.tensor(checkpoint.mean, device=device), torch.tensor(checkpoint.std, device=device)

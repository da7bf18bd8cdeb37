"""ImageNet's weights of the ResNets, which torchvision downloads."""

from __future__ import annotations

from http.client import HTTPException

import torch
from torch import nn

from sscl.models.resnet import SMALL


def imagenet_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return torchvision's default ImageNet weights as the state of a `ResNet`, whose own it keeps where they differ.

    Raises:
        ValueError: there are none for it, or they cannot be downloaded.
    """
    if encoder.name == SMALL:
        raise ValueError(f"model.weights: there are no ImageNet weights of {SMALL}; leave them out, or give a run")
    if encoder.stem == "small":
        raise ValueError("model.stem: small cannot take ImageNet's 7x7 first convolution; use model.stem=standard")
    import torchvision  # takes seconds, as it brings torch's compiler

    name = str(encoder.name).removesuffix("_pathmnist")
    try:
        state = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except (OSError, HTTPException, RuntimeError) as error:  # urllib's are OSErrors; RuntimeError: a wrong hash
        raise ValueError(
            f"model.weights: torchvision could not download the ImageNet weights of {name} ({error}); "
            "put its state dict in a file and give model.weights=PATH"
        ) from error
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if encoder.name == "resnet18_pathmnist":  # its first convolution and layer2 are others
        kept = {key: value for key, value in state.items() if key.startswith(("layer1.", "layer3.", "layer4."))}
        state = encoder.state_dict() | kept
    return state

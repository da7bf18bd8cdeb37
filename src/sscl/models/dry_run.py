"""Forward passes of fake tensors, which have shapes and no values: they take a moment and leave the model as it is."""

from __future__ import annotations

import torch
from torch import nn


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fake_inputs(
    model: nn.Module, *, shape: tuple[int, int, int, int], device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return what `torch.func.functional_call` needs for a dry run: the model's state and images, all of them empty.

    Call it, and the model, in FakeTensorMode.

    Args:
        shape: of the images, (B, 3, H, W).
    """
    state = {name: _fake(value, device) for name, value in state_of(model).items()}
    return state, torch.empty(shape, device=device, memory_format=torch.channels_last)


def _fake(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return an empty tensor of the same shape and strides."""
    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return empty.requires_grad_(value.requires_grad)

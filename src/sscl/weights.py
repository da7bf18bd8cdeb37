"""Files of weights: read them safely, find the trunk in them, fill an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Trunk:
    """An encoder's tensors and what the file says about them.

    Attributes:
        state: tensors by the encoder's own names (torchvision's for a ResNet).
        mean, std: channel means and deviations, of pixels in 0-1, that the weights expect; None: the file does not say.
        origin: where the names come from, in words.
    """

    state: dict[str, torch.Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    origin: str


def read_torch_file(path: str | Path) -> Any:
    """Return what `torch.save` wrote, loaded on the CPU with `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not written by torch, or holding more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, ... for a broken file
        raise ValueError(
            f"{path}: not a readable checkpoint ({str(error).splitlines()[0][:120] if str(error) else 'empty'}); "
            "it is truncated, or was not written by sscl"
        ) from error


def read_trunk(path: str | Path) -> Trunk:
    """Return the trunk in a checkpoint of ours or a torchvision state dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or holds something else.
    """
    content = read_torch_file(path)
    state = content.get("encoder", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or "conv1.weight" not in state:
        raise ValueError(
            f"model.weights: {path} holds neither a checkpoint of sscl nor a torchvision ResNet state dict "
            "(no tensor named conv1.weight)"
        )
    mean, std = None, None
    if "preprocessing" in content:
        mean, std = tuple(content["preprocessing"]["mean"]), tuple(content["preprocessing"]["std"])
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    return Trunk(state=state, mean=mean, std=std, origin="sscl" if "format" in content else "torchvision")


def load_trunk(encoder: nn.Module, state: dict[str, torch.Tensor], *, source: str) -> None:
    """Fill the encoder; every tensor must find its place.

    Raises:
        ValueError: missing, left-over or wrongly shaped tensors, named.
    """
    own = encoder.state_dict()
    missing = [key for key in own if key not in state]
    left_over = [key for key in state if key not in own]
    shaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    faults = []
    for what, keys in (("missing", missing), ("left over", left_over), ("of another shape", shaped)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            faults.append(f"{what}: {', '.join(keys[:3])}{more}")
    if faults:
        raise ValueError(
            f"model.weights: {source} does not fit {encoder.name} with the {encoder.stem} stem ({'; '.join(faults)}); "
            "set model.name and model.stem to those of the weights"
        )
    encoder.load_state_dict(state)

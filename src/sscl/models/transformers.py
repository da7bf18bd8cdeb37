"""Files of vision transformers: DINOv2's names become timm's, and what such tensors are of, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from sscl.words import count

TensorDict = dict[str, torch.Tensor]

# DINOv2 saves blocks in chunks, blocks.CHUNK.BLOCK, and its SwiGLU layers under other names than timm.
_CHUNKED = re.compile(r"^(net\.)?blocks\.\d+\.(\d+)\.")
_SWIGLU = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}


def timms_names(state: TensorDict) -> TensorDict:
    """Return a vision transformer's tensors by timm's names; those of other networks as they are.

    Source: DINOv2's dinov2/models/vision_transformer.py, and timm's own conversion of these files.
    """
    if "patch_embed.proj.weight" not in state or not any(key.startswith("blocks.") for key in state):
        return state
    found = {}
    for key, value in state.items():
        key = _CHUNKED.sub(r"\1blocks.\2.", key)
        for theirs, timms in _SWIGLU.items():
            key = key.replace(theirs, timms)
        found[key] = value
    if "register_tokens" in found and {"cls_token", "pos_embed"} <= found.keys():
        # timm keeps registers without positions, and the class token's own within the token
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return found


def transformer_of(state: Mapping[str, torch.Tensor]) -> str | None:
    """Return what vision transformer the tensors are of: "24 blocks of width 1024, patches of 16 px"; None if none."""
    state = {key.removeprefix("net."): value for key, value in state.items()}
    patches = state.get("patch_embed.proj.weight")
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    if patches is None or patches.ndim != 4 or not blocks:
        return None
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    inner = state.get("blocks.0.mlp.fc1.weight")
    said = f"{count(len(blocks), 'block')} of width {patches.shape[0]}, patches of {patches.shape[-1]} px"
    said += "" if inner is None else f", {count(inner.shape[0], 'hidden unit')}"
    return f"{said}, {count(registers, 'register')}" if registers else said

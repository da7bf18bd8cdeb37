"""Checkpoints: written and read here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sscl.models.weights import read_torch_file
from sscl.writing import replacing

CHECKPOINT_FORMAT = "sscl checkpoint 1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint (tensors and plain containers) in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **content}, temporary)


def checkpoint_file(path: str | Path) -> Path:
    """Return the checkpoint file that a run folder or a file name stands for: best.pt if there is one, else last.pt.

    Raises:
        FileNotFoundError: neither is there.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such run folder or checkpoint file")
        return path
    for name in ("best.pt", "last.pt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise FileNotFoundError(f"{path}: not a run folder with a checkpoint (no checkpoints/best.pt or last.pt)")


def load_checkpoint(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """Return a checkpoint's content.

    Args:
        path: a run folder or a checkpoint file.
        kind: the command that must have written it, "pretrain" or "finetune"; None takes either.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not ours, or written by another command.
    """
    file = checkpoint_file(path)
    content = read_torch_file(file)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        found = content.get("format", "another file of tensors") if isinstance(content, dict) else "another file"
        raise ValueError(f"{file}: not a checkpoint of this sscl (found {found!r}, expected {CHECKPOINT_FORMAT!r})")
    if kind is not None and content["kind"] != kind:
        raise ValueError(f"{file}: written by sscl {content['kind']}; a checkpoint of sscl {kind} is needed here")
    return content


def run_of(checkpoint: str) -> Path:
    """Return the run folder of a checkpoint, given as the folder itself or as a file in it."""
    file = checkpoint_file(checkpoint)
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent

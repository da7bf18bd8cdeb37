"""From a configuration to what the commands work with: tiles, encoder, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl.config import DataConfig, ModelConfig, validate
from sscl.data.imagefolder import load_imagefolder
from sscl.data.mhist import load_mhist
from sscl.data.tiles import Tiles
from sscl.models import IMAGENET_MEAN, IMAGENET_STD, Classifier, Encoder, build_encoder, read_torch_file
from sscl.run import CHECKPOINT_FORMAT, checkpoint_file, load_checkpoint


def load_tiles(data: DataConfig, *, split: str, progress: bool) -> Tiles:
    """Return the tiles of a split, "train", "test" or "all"."""
    if data.source == "mhist":
        return load_mhist(
            data.root,
            protocol=data.protocol,
            split=split,
            seed=data.split_seed,
            size_px=data.size_px,
            published=data.published,
            cache_dir=data.cache_dir,
            progress=progress,
        )
    return load_imagefolder(
        data.root,
        split=split,
        groups_csv=data.groups_csv,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
        size_px=data.size_px,
        cache_dir=data.cache_dir,
        progress=progress,
    )


def describe_tiles(data: DataConfig, tiles: Tiles, *, split: str) -> str:
    """Return one line: source, protocol, split, count, classes."""
    protocol = f", protocol {data.protocol}" if data.source == "mhist" else ""
    counts = ", ".join(f"{count} {name}" for name, count in tiles.class_counts().items())
    return f"{data.root} ({data.source}{protocol}), split {split}: {len(tiles)} tiles{f' ({counts})' if counts else ''}"


def merge_data(trained: dict[str, Any], changes: dict[str, Any]) -> DataConfig:
    """Return the data section a checkpoint was trained with, with some keys changed."""
    try:
        return validate(DataConfig, {**trained, **changes}, source="the checkpoint's data with your data.* keys")
    except ValueError as error:
        raise ValueError("\n".join(f"data.{line}" for line in str(error).splitlines())) from None


def check_inputs_outside(folder: Path, inputs: dict[str, str | None]) -> None:
    """Raise ValueError if a file or folder to read, given by its key, lies in the folder that would be replaced."""
    for key, value in inputs.items():
        if value not in (None, "imagenet") and Path(str(value)).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: holds {key}={value}, which would be lost; name another folder to write")


@dataclass(frozen=True)
class Start:
    """An encoder to train, and what comes with its weights.

    Attributes:
        encoder: with its weights.
        mean, std: channel means and deviations of pixels in 0-1.
        history: the data sections of the runs that its weights went through, oldest first; eval compares them.
    """

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict[str, Any]]


def start_encoder(model: ModelConfig) -> Start:
    """Return the encoder to start from.

    Raises:
        ValueError: the weights are another encoder's or another command's, or not readable.
        FileNotFoundError: no such run or file.
    """
    weights, mean, std = model.weights, IMAGENET_MEAN, IMAGENET_STD
    history: list[dict[str, Any]] = []
    if weights not in (None, "imagenet"):
        assert weights is not None
        weights = str(checkpoint_file(weights))
        content = read_torch_file(weights)
        if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
            if content["kind"] != "pretrain":
                raise ValueError(
                    f"model.weights: {weights} was written by sscl {content['kind']}; start from a run of sscl pretrain"
                )
            made = content["encoder_name"], content["stem"]
            if made != (model.name, model.stem):
                raise ValueError(
                    f"model.weights: {weights} holds {made[0]} with the {made[1]} stem; set model.name={made[0]} "
                    f"model.stem={made[1]} (got {model.name}, {model.stem})"
                )
            mean, std = content["preprocessing"]["mean"], content["preprocessing"]["std"]
            history = [*content["history"], content["config"]["data"]]
    encoder = build_encoder(model.name, weights=weights, stem=model.stem, output_stride=model.output_stride)
    return Start(encoder=encoder, mean=tuple(model.mean or mean), std=tuple(model.std or std), history=history)


def blank_classifier(content: dict[str, Any]) -> Classifier:
    """Return the classifier of a finetune checkpoint with random weights."""
    encoder = build_encoder(content["encoder_name"], stem=content["stem"], output_stride=content["output_stride"])
    return Classifier(encoder, num_classes=len(content["classes"]))


def load_classifier(path: str, *, device: torch.device) -> tuple[Classifier, dict[str, Any]]:
    """Return a finetune checkpoint's classifier, in evaluation mode on the device, and the checkpoint's content."""
    content = load_checkpoint(path, kind="finetune")
    classifier = blank_classifier(content)
    classifier.encoder.load_state_dict(content["encoder"])
    classifier.head.load_state_dict(content["head"])
    return classifier.to(device).eval(), content


def normalisation(content: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a checkpoint's channel means and deviations as tensors (3,) on the device."""
    preprocessing = content["preprocessing"]
    return torch.tensor(preprocessing["mean"], device=device), torch.tensor(preprocessing["std"], device=device)


def positive_class(classes: tuple[str, ...], wanted: str | None) -> int | None:
    """Return the index of the positive class: the wanted one, else SSA, else the second of two; None beyond two.

    Raises:
        ValueError: no such class, or a wanted class where there are more than two.
    """
    if wanted is not None:
        if wanted not in classes:
            raise ValueError(f"positive: got {wanted!r}, allowed are {', '.join(classes)}")
        if len(classes) != 2:
            raise ValueError(f"positive: a positive class needs two classes, the checkpoint has {len(classes)}")
        return classes.index(wanted)
    if len(classes) != 2:
        return None
    return classes.index("SSA") if "SSA" in classes else 1


def all_rows(tiles: Tiles) -> NDArray[np.int64]:
    """Return 0 .. N-1."""
    return np.arange(len(tiles), dtype=np.int64)


def run_of(checkpoint: str) -> Path:
    """Return the run folder of a checkpoint, given as the folder itself or as a file in it."""
    file = checkpoint_file(checkpoint)
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def check_classes(tiles: Tiles, content: dict[str, Any], *, checkpoint: str, root: str) -> None:
    """Raise ValueError unless the tiles have the classes, in order, that the checkpoint was trained on."""
    if list(tiles.classes) != content["classes"]:
        found = ", ".join(tiles.classes) or "none"
        raise ValueError(
            f"data.root: {root} has the classes {found}, but {checkpoint} was trained on "
            f"{', '.join(content['classes'])}"
        )

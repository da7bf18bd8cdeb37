"""The encoder to start from: random, ImageNet, a run of ours or a file of weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sscl.config import EncoderConfig, ModelConfig
from sscl.models.checkpoint import CHECKPOINT_FORMAT, checkpoint_file
from sscl.models.encoders import Encoder, build_encoder
from sscl.models.pixels import preprocessing_of
from sscl.models.weights import exported_facts, load_trunk, read_torch_file, read_trunk

NO_STATISTICS = (
    "warning: train.freeze_batch_norm keeps the batch-norm statistics of the weights, and random ones have none "
    "(mean 0, variance 1): nothing is normalised; leave it out, or give model.weights"
)
# What a checkpoint holds besides plain values.
TENSORS = ("encoder", "head", "model", "optimizer", "scaler")


@dataclass(frozen=True)
class Start:
    """An encoder, and what comes with its weights.

    Attributes:
        encoder: with its weights.
        mean, std: channel means and deviations of pixels in 0-1.
        history: the data sections of the runs that its weights went through, oldest first; eval compares them.
        size_px: side of the tiles it was trained on; None: nothing says.
        content: a checkpoint of ours without its tensors; None for other weights.
    """

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict[str, Any]]
    size_px: int | None = None
    content: dict[str, Any] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits from the name, the weights and the normalisation: equal for equal features of equal tiles."""
        digest = hashlib.sha256(repr((self.encoder.name, self.encoder.output_stride, self.mean, self.std)).encode())
        for name, value in self.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def start_encoder(model: ModelConfig) -> Start:
    """Return the encoder to start training from.

    Raises:
        ValueError: the weights are another encoder's, or not readable.
        FileNotFoundError: no such run or file.
    """
    file = weights_file(model.weights)
    content = None if file is None else _own_content(file)
    if content is not None:
        made = content["encoder_name"], content["stem"]
        if made != (model.name, model.stem):
            raise ValueError(
                f"model.weights: {file} holds {made[0]} with the {made[1]} stem; set model.name={made[0]} "
                f"model.stem={made[1]} (got {model.name}, {model.stem})"
            )
        if content["kind"] == "finetune":
            print(f"model.weights: {file} was trained with labels ({', '.join(content['classes'])})")
    return _open(
        model.name,
        weights=model.weights,
        file=file,
        stem=model.stem,
        output_stride=model.output_stride,
        mean=model.mean,
        std=model.std,
        content=content,
    )


def frozen_encoder(spec: EncoderConfig) -> Start:
    """Return an encoder to look at, in evaluation mode; a checkpoint of ours says itself which one it is.

    Raises:
        ValueError: it takes a name, or another one than given; the weights do not fit or are not readable.
        FileNotFoundError: no such run or file.
    """
    file = weights_file(spec.weights)
    content = None if file is None else _own_content(file)
    name, stem, output_stride = spec.model, spec.stem, 32
    said = {} if file is None else exported_facts(file)
    if content is not None:
        said = {**content, "encoder": content["encoder_name"], "size_px": content["preprocessing"]["size_px"]}
    if said:
        if name not in (None, said["encoder"]):
            raise ValueError(f"model: got {name}, but {file} holds {said['encoder']}; leave model out")
        # Older checkpoints and files do not say their stride.
        name, stem, output_stride = said["encoder"], said["stem"], said.get("output_stride", 32)
    if name is None:
        what = "random weights" if spec.weights is None else f"weights={spec.weights}"
        raise ValueError(f"model: missing; {what} takes the encoder's name, for instance model=resnet18")
    if spec.weights is None:
        torch.manual_seed(spec.seed)
    start = _open(
        name,
        weights=spec.weights,
        file=file,
        stem=stem,
        output_stride=output_stride,
        mean=spec.mean,
        std=spec.std,
        content=content,
    )
    start.encoder.eval()
    return replace(start, size_px=spec.size_px or said.get("size_px"))


def weights_file(weights: str | None) -> Path | None:
    """Return the file that `weights` names, a run folder's checkpoint too; None for random and ImageNet weights.

    Raises:
        FileNotFoundError: no such run or file.
    """
    return None if weights in (None, "imagenet") else checkpoint_file(str(weights))


def _own_content(file: Path) -> dict[str, Any] | None:
    """Return a checkpoint's content without its tensors; None if it is not one of ours."""
    content = read_torch_file(file)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        return None
    return {key: value for key, value in content.items() if key not in TENSORS}


def _open(
    name: str,
    *,
    weights: str | None,
    file: Path | None,
    stem: str,
    output_stride: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    content: dict[str, Any] | None,
) -> Start:
    size_px: int | None = None
    history: list[dict[str, Any]] = []
    if file is None:
        encoder = build_encoder(name, weights=weights, stem=stem, output_stride=output_stride)
        own_mean, own_std = preprocessing_of(name, weights)
    else:
        encoder = build_encoder(name, stem=stem, output_stride=output_stride)
        trunk = read_trunk(file)
        load_trunk(encoder, trunk.state, source=str(file))
        usual_mean, usual_std = preprocessing_of(name, None)  # where the file does not say
        own_mean, own_std = trunk.mean or usual_mean, trunk.std or usual_std
    if content is not None:
        size_px = content["preprocessing"]["size_px"]
        data = content["config"]["data"]
        sources = [data] if isinstance(data, dict) else data  # pretraining has a list
        # Before it had one, there was `unlabelled`, a folder besides.
        more = [
            {**source, "source": "folder", "root": source["unlabelled"]}
            for source in sources
            if source.get("unlabelled")
        ]
        history = [*content["history"], *sources, *more]
    return Start(
        encoder=encoder,
        mean=tuple(mean or own_mean),
        std=tuple(std or own_std),
        history=history,
        size_px=size_px,
        content=content,
    )
